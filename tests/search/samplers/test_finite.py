"""Finite spaces: every configuration once, what is left of it, who may take it, and replicates after it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from search.common.attributes import REPLICATE
from search.common.errors import UsedUp
from search.costs.preflight import Preflight
from search.samplers.admission import check_replicates
from search.samplers.caddie import CaddieSampler
from search.samplers.finite import configurations, end_of, listed, seeds_of, values_of
from search.space.native import build_space
from search.space.space import Space
from search.storage.patient import requeue
from search.study.limits import set_all, violations
from search.study.load import load_study
from tests.search.fakes import HEADER, KNOWN, make_study
from tests.search.foreign_studies import foreign_study, space_of
from tests.search.samplers.test_caddie import SMALL, rig

RESULT = {"artifact_bytes": 1000, "train_seconds": 1.0, "eval_seconds": 1.0}


def finite(folder: Path, *, replicates: int = 1, header: str = HEADER) -> tuple[Any, Space, CaddieSampler]:
    """(off or 3 modes of a technique) × (another off or on): 8 configurations."""
    return rig(folder, text=SMALL + f"replicates = {replicates}\n", header=header)


def step(
    sampler: CaddieSampler, space: Space, optimizer: optuna.Study, *, bpb: float = 2.0, over: bool = False
) -> bool:
    """One trial as a worker runs it; False: there was no more to try."""
    if sampler.more(optimizer) is False and not optimizer.get_trials(states=(TrialState.WAITING,)):
        return False
    trial = optimizer.ask()
    params = space.suggest(trial)
    facts = RESULT | ({"eval_seconds": 1000.0} if over else {})
    set_all(trial, violations(facts, sampler.preflight.study.limits))
    optimizer.tell(trial, bpb + len(str(sorted(params.items()))) / 1000)
    return True


def keys(optimizer: optuna.Study) -> list[str]:
    return [str(sorted(t.params.items())) for t in optimizer.trials]


def test_a_conditional_space_is_listed_without_repeats(tmp_path: Path) -> None:
    _, space, _ = finite(tmp_path)
    found = [str(sorted(c.items())) for c in configurations(space)]
    assert len(found) == len(set(found)) == 8 and len(listed(space) or ()) == 8
    theirs = '[fixed]\nX = 1\n[space]\nA = { gate = true }\nB = { low = 1, high = 9, step = 4, when = "A" }\n'
    theirs += 'C = { choices = ["p", "q"] }\nD = { low = 1, high = 3, log = true, when = { C = ["q"] } }\n'
    space = space_of(foreign_study(tmp_path, theirs))
    assert len(list(configurations(space))) == (1 + 3) * (1 + 3)


def test_ranges_and_endless_spaces(tmp_path: Path) -> None:
    assert list(values_of(IntDistribution(2, 8, step=3))) == [2, 5, 8]
    assert list(values_of(IntDistribution(1, 4, log=True))) == [1, 2, 3, 4]
    assert list(values_of(FloatDistribution(0.5, 0.5))) == [0.5]
    assert list(values_of(CategoricalDistribution(("a", None)))) == ["a", None]
    _, space, sampler = rig(tmp_path)
    assert listed(space) is None and sampler.left is None and sampler.more(optuna.create_study())


def test_a_count_that_a_size_bounds_is_listed_as_it_is_run(tmp_path: Path) -> None:
    text = '[techniques]\nothers = "off"\nplain = "on"\n[fixed]\n"plain.gain" = 1.0\n"plain.mode" = "a"\n'
    text += "[space]\nnum_layers = {low = 2, high = 4}\n"  # plain.last_n: from 1 to as many
    _, space, sampler = rig(tmp_path, text=text, header=HEADER)
    assert len(listed(space) or ()) == 2 + 3 + 4
    optimizer = optuna.create_study(sampler=sampler)
    while step(sampler, space, optimizer):
        pass
    assert len(optimizer.trials) == len(set(keys(optimizer))) == 9


def test_a_worker_asks_for_no_trial_that_would_find_nothing(tmp_path: Path) -> None:
    _, space, sampler = finite(tmp_path)
    optimizer = optuna.create_study(sampler=sampler)
    for _ in range(6):
        assert step(sampler, space, optimizer)
    asked = []
    for _ in range(2):  # two left, and nobody has said yet which they take
        assert sampler.more(optimizer)
        asked.append(optimizer.ask())
    assert not sampler.more(optimizer)
    for trial in asked:
        space.suggest(trial)
    assert not sampler.more(optimizer) and len(set(keys(optimizer))) == 8


def test_many_threads_take_every_configuration_once(tmp_path: Path) -> None:
    """Each with a sampler of its own, as workers; the lock is the study's."""
    optimizer = optuna.create_study()
    lock = threading.Lock()
    errors = list[Exception]()

    def claim(store: Any) -> bool:
        with lock:
            return store()

    def work(sampler: CaddieSampler, space: Space) -> None:
        try:
            while True:
                with lock:
                    study = optuna.Study(optimizer.study_name, optimizer._storage, sampler=sampler)  # type: ignore[reportPrivateUsage]
                    if not sampler.more(study):
                        return
                    trial = study.ask()
                space.suggest(trial)
        except Exception as error:  # noqa: BLE001 (told by the test)
            errors.append(error)

    workers = list[threading.Thread]()
    for k in range(6):
        folder = tmp_path / str(k)
        folder.mkdir()
        _, space, sampler = finite(folder)
        sampler.claim = claim
        workers.append(threading.Thread(target=work, args=(sampler, space)))
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join(60)
    assert not errors and len(optimizer.trials) == 8 and len(set(keys(optimizer))) == 8


def test_replicates_of_what_kept_the_limits_the_best_first(tmp_path: Path) -> None:
    study, space, sampler = finite(tmp_path, replicates=3)
    optimizer = optuna.create_study(sampler=sampler)
    for k in range(8):
        assert step(sampler, space, optimizer, over=k == 4)
    while step(sampler, space, optimizer):
        pass
    again = [t.user_attrs[REPLICATE] for t in optimizer.trials[8:]]
    assert len(again) == 14 and 4 not in {facts["of"] for facts in again}
    firsts = {t.number: t.value for t in optimizer.trials[:8] if t.number != 4}
    assert [facts["of"] for facts in again[:7]] == sorted(firsts, key=lambda n: (firsts[n], n))
    assert {facts["seed"] for facts in again} == set(seeds_of(study)) and len(seeds_of(study)) == 2
    assert all(facts["seed"] == seeds_of(study)[k // 7] for k, facts in enumerate(again))
    assert all("duplicate" not in str(t.user_attrs) for t in optimizer.trials[8:])
    told = end_of(space, study, optimizer.trials, 99)
    assert "all 8 configurations were tried, those that kept the limits on 3 seeds each;" in told
    assert "ends with 22 of 99 trials" in told and "`replicates = 6`" in told


def test_a_lost_replicate_is_run_again_on_its_own_seed_and_a_larger_number_goes_on(tmp_path: Path) -> None:
    study, space, sampler = finite(tmp_path, replicates=2)
    optimizer = optuna.create_study(sampler=sampler)
    for _ in range(9):
        assert step(sampler, space, optimizer)
    lost = optimizer.trials[8]
    facts = lost.user_attrs[REPLICATE]
    optimizer.add_trial(
        optuna.create_trial(
            state=TrialState.FAIL,
            params=lost.params,
            distributions=lost.distributions,
            user_attrs={REPLICATE: {"of": facts["of"], "seed": 77}},
        )
    )
    while step(sampler, space, optimizer):
        pass
    assert len(optimizer.trials) == 8 + 8 + 1  # what was lost counts as no run
    more, _, later = finite(tmp_path, replicates=4)
    assert seeds_of(more)[:1] == seeds_of(study)
    optimizer.sampler = later
    while step(later, space, optimizer):
        pass
    used = [
        t.user_attrs[REPLICATE]["seed"]
        for t in optimizer.trials
        if REPLICATE in t.user_attrs and t.user_attrs[REPLICATE]["of"] == 0 and t.state == TrialState.COMPLETE
    ]
    assert sorted(used) == sorted(seeds_of(more))


def test_a_finite_space_that_is_too_large_to_list_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.samplers.finite.MOST", 5)
    _, space, sampler = finite(tmp_path, replicates=2)
    sampler.max_resamples = 20
    optimizer = optuna.create_study(sampler=sampler)
    for _ in range(8):
        assert step(sampler, space, optimizer)
    assert sampler.more(optimizer)  # nobody has counted
    trial = optimizer.ask()
    with pytest.raises(UsedUp, match="Nothing new is left"):
        space.suggest(trial)
    optimizer.tell(trial, state=TrialState.FAIL)
    assert step(sampler, space, optimizer)  # from now on replicates
    assert REPLICATE in optimizer.trials[-1].user_attrs
    told = end_of(space, sampler.preflight.study, optimizer.trials, 20)
    assert "nothing new that is admitted is left beside the 8 configurations tried" in told


def test_what_is_not_admitted_is_told(tmp_path: Path) -> None:
    study, space, sampler = finite(tmp_path)
    assert isinstance(sampler.preflight, Preflight)
    plain = sampler.preflight.rejection

    def refuse(resolved: Any, **how: Any) -> str | None:
        return "bytes: too many" if resolved.values["coarse_round"] else plain(resolved, **how)

    sampler.preflight.rejection = refuse  # type: ignore[method-assign]
    optimizer = optuna.create_study(sampler=sampler)
    while step(sampler, space, optimizer):
        pass
    assert len(optimizer.trials) == 4
    told = end_of(space, study, optimizer.trials, 9)
    assert "of 8 configurations 4 were tried, the others are not admitted; the study ends with 4 of 9" in told
    tried = set(keys(optimizer))
    every = list((listed(space) or {}).values())
    params = next(one for one in every if str(sorted(one.items())) not in tried)
    dists = {name: space.distributions[name] for name in params}
    lost = optuna.create_trial(state=TrialState.FAIL, params=params, distributions=dists)
    optimizer.add_trial(lost)
    assert ", 1 went with the machine again and again;" in end_of(space, study, optimizer.trials, 9)


def test_a_configuration_that_was_queued_is_taken_as_soon_as_it_runs(tmp_path: Path) -> None:
    """From the moment that a queued trial runs its parameters are those that it was queued with."""
    _, space, sampler = finite(tmp_path)
    optimizer = optuna.create_study(sampler=sampler)
    queued = next(iter((listed(space) or {}).values()))
    optimizer.enqueue_trial(queued)
    waiting = optimizer.ask()
    for _ in range(7):
        assert sampler.more(optimizer)
        assert space.suggest(optimizer.ask()) != queued
    assert not sampler.more(optimizer) and space.suggest(waiting) == queued


def test_the_last_configuration_is_tried_again_though_nothing_new_is_left(tmp_path: Path) -> None:
    """A trial that is tried again has its parameters: it needs no proposal, and another would be wrong."""
    _, space, sampler = finite(tmp_path)
    optimizer = optuna.create_study(sampler=sampler)
    for _ in range(7):
        assert step(sampler, space, optimizer)
    crashed = optimizer.ask()
    params = space.suggest(crashed)
    optimizer.tell(crashed, state=TrialState.FAIL)
    assert requeue(optimizer, optimizer.trials[-1], counted=True)
    again = optimizer.ask()
    assert again.number == 8 and again.relative_params == params == space.suggest(again)
    optimizer.tell(again, 2.0)
    assert not sampler.more(optimizer)


def test_a_seed_is_no_parameter_and_replicates_need_an_end(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    for name in ("choices = [1, 2]", "low = 1, high = 9"):
        path.write_text(HEADER + f"[space]\nseed = {{ {name} }}\n")
        with pytest.raises(ValueError, match=r"luckiest one.*`seed` is in \[space\].*`replicates = 4`"):
            load_study(path, KNOWN)
    for text in ("[space]\nSEED = { choices = [1, 2] }\n", "[space]\nRNG = { low = 1, high = 9 }\n"):
        text = ('seed = "RNG"\n' if "RNG" in text else "") + text
        with pytest.raises(ValueError, match=r"luckiest one, but `(SEED|RNG)` is in \[space\]"):
            foreign_study(tmp_path, text)
    with pytest.raises(ValueError, match=r'does not say which variable.*seed = "SEED"'):
        foreign_study(tmp_path, "[space]\nA = { gate = true }\n[sampler]\nreplicates = 2\n")
    study = make_study(tmp_path, "[sampler]\nreplicates = 2\n[space]\nmatrix_lr = {low = 0.01, high = 0.1}\n")
    with pytest.raises(ValueError, match=r"never used up \(`\S+` is a real number.*search.py confirm"):
        check_replicates(study, build_space(study, KNOWN))
    header = HEADER.replace("[limits]", "allow_duplicates = true\n[limits]")
    twice, space, sampler = finite(tmp_path, replicates=2, header=header)
    assert sampler.more(optuna.create_study())
    with pytest.raises(ValueError, match="allow_duplicates is on"):
        check_replicates(twice, space)


def test_a_foreign_study_is_the_same_one_with_its_seed_named(tmp_path: Path) -> None:
    plain = foreign_study(tmp_path, "[space]\nA = { gate = true }\n")
    named = foreign_study(
        tmp_path, 'seed = "SEED"\n[space]\nA = { gate = true }\n[sampler]\nreplicates = 2\n'
    )
    assert plain.foreign and named.foreign and plain.foreign.identity() == named.foreign.identity()
