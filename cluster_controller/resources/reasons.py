"""The words for what happens to clusters and Applications: one list for Events, for `/metrics`, `banyan events --reason` and people.

Each is written somewhere in this program, and whatever this program decides is written with one of them. What it only passes on, the
words of shims about what they run (`CrashLoopBackOff`, `ImagePullBackOff`), is as open as shims are and not listed here.
"""

from enum import StrEnum


class Reason(StrEnum):
    # clusters
    LOST = "LinkLost"
    """Out of reach, with the hop that is broken. What runs there is taken to run on."""
    NEVER_REPORTED = "NeverReported"
    """Known from its parent, and nothing came from itself yet."""
    RETURNED = "Ready"
    """In reach, for the first time or again."""
    ADOPTED = "Adopted"
    """Under another parent for the time being."""
    HOME = "ReturnedHome"
    """Back under its own parent."""
    MOVED = "Moved"
    """A person gave it another parent."""
    REPLACED = "Replaced"
    """Others run what a silent cluster was to run."""
    REPLACEMENT_ENDED = "ReplacementEnded"
    """It is back, and what others ran for it ends."""
    REFUSED = "Refused"
    """The policy of a site vetoes what it was given."""
    REFUSAL_ENDED = "RefusalEnded"
    """It takes it now, or is no longer given it."""
    PREEMPTED = "Preempted"
    """Replicas gave way to an Application of higher priority."""
    PREEMPTS = "Preempts"
    """Others gave way to this Application."""
    OUT_OF_ROOM = "OutOfRoom"
    """The cluster became too small for all that it has: replicas go, the lowest priority first."""
    CANNOT_DRAIN = "CannotDrain"
    """What nobody else has room for runs on in a cluster that is drained."""
    REBALANCED = "Rebalanced"
    """A replica moved because others carried less."""
    OVERRIDE_FAILED = "OverrideFailed"
    """An override does not fit: what ran before runs on."""
    OVERRIDE_APPLIED = "OverrideApplied"
    """It fits at last."""
    NOT_IN_BACKUP = "NotInBackup"
    """It came in by its certificate; the backup that this controller was restored from does not know it."""
    DRILL_BEGAN = "DrillBegan"
    DRILL_ENDED = "DrillEnded"
    """With what was kept."""
    ROTATION_BEGAN = "RotationBegan"
    ROTATION_FINISHED = "RotationFinished"
    # Applications
    RUNNING = "Running"
    """All that is wanted is ready."""
    PROGRESSING = "Progressing"
    """It is on its way to what is wanted."""
    UNPLACED = "Unplaced"
    """No cluster takes any of it."""
    MISSING_REFERENCE = "MissingReference"
    """Something that it names does not exist."""
    UNREACHABLE = "Unreachable"
    """A part of it is where nobody reaches."""
    ROLLOUT_WAVE = "RolloutWave"
    """The next wave begins."""
    ROLLOUT_COMPLETE = "RolloutComplete"
    ROLLOUT_FAILED = "RolloutFailed"
    ROLLED_BACK = "RolledBack"
    """The version before was put back."""


WARNINGS = frozenset(
    {
        Reason.LOST,
        Reason.NEVER_REPORTED,
        Reason.ADOPTED,
        Reason.REPLACED,
        Reason.REFUSED,
        Reason.PREEMPTED,
        Reason.OUT_OF_ROOM,
        Reason.CANNOT_DRAIN,
        Reason.OVERRIDE_FAILED,
        Reason.NOT_IN_BACKUP,
        Reason.UNPLACED,
        Reason.MISSING_REFERENCE,
        Reason.UNREACHABLE,
        Reason.ROLLOUT_FAILED,
        Reason.ROLLED_BACK,
    }
)
OTHER = "Other"
"""As which `/metrics` counts what is passed on in words of others."""
