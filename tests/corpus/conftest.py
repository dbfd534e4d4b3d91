"""Small datasets for the corpus tests: a generated package of prose, a tokenizer, a dataset folder."""

import random
from pathlib import Path

import pytest

from corpus.build import BuildOptions, build
from corpus.export import Target
from corpus.text.sources import Package
from corpus.tokenizer import Tokenizer, load_tokenizer, train_bpe

WORDS = (
    "the of and a to in is it that was for on are with as they be at one have this from by hot word but what "
    "some there we can out other were all your when up use how said each she which do their time if will way "
    "about many then them would write like so these her long make thing see him two has look more day could "
    "go come did number sound no most people my over know water than call first who may down side been now"
).split()


def sentences(seed: int, count: int) -> list[str]:
    """Paragraph-sized prose, all different, with some digits and characters outside ASCII."""
    generator = random.Random(seed)
    extra = ["naïve", "café", "1234", "日本", "–", "Ω", "x²"]
    return [
        " ".join(generator.choices(WORDS, k=40) + generator.choices(extra, k=2) + [f"item {seed} {i}."])
        for i in range(count)
    ]


def write_package(root: Path, name: str, *, num_files: int, seed: int) -> Package:
    """A folder of Python modules with docstrings and comments that would fail if they were executed."""
    folder = root / name
    folder.mkdir(parents=True)
    for index in range(num_files):
        texts = sentences(seed * 1000 + index, 12)
        code = ['"""' + "\n\n".join(texts[:6]) + '\n"""', "raise SystemExit('executed')"]
        code += [f'def f{i}():\n    """{text}"""' for i, text in enumerate(texts[6:9])]
        code += [f"# {texts[9]}\n# {texts[10]}", f"x = '# not a comment'  # {texts[11]}"]
        (folder / f"m{index}.py").write_text("\n".join(code), encoding="utf-8")
    return Package(name, "1.0", folder)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t_400_bpe.model"
    path.write_bytes(train_bpe(sentences(1, 200), vocab_size=400))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_path, vocab_size=400)


@pytest.fixture
def dataset_target(tmp_path: Path) -> Target:
    """A freshly built dataset `tale_sp400` under tmp_path/data, 300 documents."""
    source = tmp_path / "tale.jsonl"
    source.write_text("".join(f'{{"text": "{text}"}}\n' for text in sentences(2, 300)), encoding="utf-8")
    target = Target(tmp_path / "data", "tale", 400)
    build(target, [source], options=BuildOptions(val_documents=30))
    return target
