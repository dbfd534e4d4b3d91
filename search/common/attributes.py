"""The names under which facts are stored with a study and its trials; no other file spells them.

Databases of earlier versions are read: a name here may change, its text may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# -- of a study (user attributes)
STUDY_HASH = "study_hash"
STUDY_IDENTITY = "study_identity"  # what the hash is made of
STUDY_FILE = "study_file"  # the text of its file
BASELINE = "baseline"  # figures of its starting point
CODE_HASH = "code_hash"
HARDWARE = "hardware"  # of the study's first machine; the same key stands in each trial's `passport`
TRAINER = "trainer"
PRIOR = "prior"  # earlier studies whose BPB it learns from: {"studies": {name: counts}, "published": …}
ARCHIVED = "archived"  # hidden from the list of studies
PRICE = "price"  # dollars of an hour of one GPU, GPUs of a trial: as its file says
TRACKING = "tracking"  # what went wrong with a tracker since the study was last started; "": nothing
CONFIRMED = "confirmed"  # trial's number -> what its runs on fresh seeds gave (claims/confirm.py)

# -- of a trial (user attributes): before it runs
WORKER = "worker"  # host:pid:index
CONFIG = "config"
CONFIG_HASH = "hash"
TECHNIQUES = "techniques"  # names of those that are on
LEGALITY = "legality"
REJECTIONS = "rejections"  # reason -> how many proposals of this trial it rejected
PREFLIGHT = "preflight"  # what the sampler predicted
REPLICATE = "replicate"  # `of`: the number of its configuration's first trial; `seed`: its own
LEARNT = "learnt"  # earlier study -> {"trials": read of it, "trust": 0 to 1} when this one was proposed
FROM_CHECKPOINT = "from_checkpoint"  # training key of the cached weights that the trial was sent to

# while it runs
REPORTS = "reports"  # [[progress, val_bpb, lr_scale], …]
SPARED = "spared"  # facts of the verdict on a trial that runs on although it would be given up

# after it ran
RESULT = "result"  # of imported trials, in one piece
OUTCOME = "outcome"
UNUSED = "unused"  # as an outcome: nothing was left for the trial to try
REASON = "reason"
ARTIFACT_BYTES = "artifact_bytes"
CODE_BYTES = "code_bytes"
TRAIN_SECONDS = "train_seconds"
EVAL_SECONDS = "eval_seconds"
TRUE_SECONDS = "true_seconds"
STEPS = "steps"
PARAMS = "params"
PROTOCOL = "protocol"  # label of the line that gave the score
LABELS = "labels"  # of a result: all that were printed, without parameters, the score's first
# of a result
FIGURES = (ARTIFACT_BYTES, CODE_BYTES, TRAIN_SECONDS, EVAL_SECONDS, TRUE_SECONDS, STEPS, PARAMS)
BPB_CHAIN = "bpb_chain"  # [[link, bits per byte], …] of a result, from the last weights to the scorer
STAGE_SECONDS = "stage_seconds"  # stage -> timed seconds
STAGE_MEMORY = "stage_memory"  # {bytes: {stage: peak}, anew: whether each stage's was counted from its start}
STAGE_REUSE = "stages"  # recorded true seconds by stage, what was reused, seconds spent and saved
OVER = "over_limit"  # the limits that it broke, in words
SLACK_BYTES = "slack_bytes"  # below the limit; negative: over it
INACTIVE = "inactive"  # technique -> why it changed nothing
FINDINGS = "findings"
PASSPORT = "passport"  # code, data and machine of a result
COST_ERRORS = "cost_errors"  # constraint -> relative error of the prediction
OVERHEAD = "overhead"  # seconds beside the trainer's work
CACHE_NOTES = "cache_notes"
VIOLATION = "violation_"  # before a constraint's name: mirrors it for the dashboard's table

# -- of a trial (Optuna's system attributes)
FIXED_PARAMS = "fixed_params"  # of an enqueued trial
RETRY_OF = "retry_of"  # number of the failed trial
RETRY_HISTORY = "retry_history"
FAILED_TRIAL = "failed_trial"


def result_of(trial: FrozenTrial) -> Mapping[str, Any] | None:
    """A trial's result as its worker stored it: the user attribute `result`, or the figures one by one."""
    attrs = trial.user_attrs
    found = attrs.get(RESULT)
    if isinstance(found, Mapping):
        return found  # pyright: ignore[reportUnknownVariableType]
    result = {key: attrs[key] for key in (*FIGURES, STAGE_SECONDS) if key in attrs}
    return {**result, HARDWARE: hardware_of(trial)} if result else None


def hardware_of(trial: FrozenTrial) -> str:
    """Where a finished trial ran; "" when it does not tell (then it counts for whoever asks)."""
    passport = cast("Mapping[str, Any]", trial.user_attrs.get(PASSPORT) or {})
    return str(passport.get(HARDWARE) or "")
