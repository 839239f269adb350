"""Errors that clouds and queues answer, and the right reaction to each.

The patterns are words of documented answers: Google's canonical codes (NOT_FOUND, RESOURCE_EXHAUSTED, …) as gcloud
prints them, "Error from server (Reason)" of kubectl, and Slurm's messages.
"""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from imagen_jax.errors import UserError, printable
from launch.jobs.job import TryLaterError
from launch.jobs.runner import TIMED_OUT, Answer


class Reaction(enum.Enum):
    """The reaction to an error."""

    ADOPT = "it is there already: go on with it"
    ABSENT = "it is not there"
    ELSEWHERE = "another zone, or the same one later"
    ELSEWHERE_ONLY = "another zone; waiting does not help"
    LATER = "the same again later"
    STOP = "nothing but a change by the user"


@dataclass(frozen=True)
class Problem:
    """An answer understood.

    Args:
      reaction: what helps.
      line: the problem in one plain line.
    """

    reaction: Reaction
    line: str

    def error(self) -> Exception:
        """The exception that says it: TryLaterError where waiting helps, otherwise UserError."""
        waits = self.reaction in (Reaction.LATER, Reaction.ELSEWHERE)
        return TryLaterError(self.line) if waits else UserError(self.line)


_Rule = tuple[str, Reaction, str]

GCLOUD: Sequence[_Rule] = (
    (r"ALREADY_EXISTS|already exists", Reaction.ADOPT, "it exists already"),
    (r"NOT_FOUND|was not found", Reaction.ABSENT, "it does not exist"),
    (
        r"no more capacity|Insufficient reserved capacity|ZONE_RESOURCE_POOL_EXHAUSTED|STOCKOUT",
        Reaction.ELSEWHERE,
        "the zone has no such machines free (stockout)",
    ),
    (
        r"(?i)quota.*exceed|exceed.*quota|QUOTA_EXCEEDED",
        Reaction.ELSEWHERE_ONLY,
        "the project's quota does not allow it; ask for more (IAM & Admin, Quotas), or take a smaller accelerator",
    ),
    (
        r"could not be found in the zonal accelerator|accelerator \S+ was not found in zone",
        Reaction.ELSEWHERE_ONLY,
        "the zone does not offer this accelerator",
    ),
    (
        r"auth login|Reauthentication|invalid_grant|UNAUTHENTICATED|do not currently have an active account",
        Reaction.STOP,
        "nobody is logged in; run gcloud auth login",
    ),
    (
        r"PERMISSION_DENIED|does not have permission|has not been used in project",
        Reaction.STOP,
        "the account may not do this, or the Cloud TPU API is off (gcloud services enable tpu.googleapis.com)",
    ),
    (r"FAILED_PRECONDITION", Reaction.LATER, "something else goes on with it"),
    (
        r"UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED|RESOURCE_EXHAUSTED|timed out|Connection (refused|reset)"
        r"|[Nn]etwork is unreachable|HTTPError 5\d\d",
        Reaction.LATER,
        "Google Cloud does not answer as it should",
    ),
)
KUBECTL: Sequence[_Rule] = (
    (r"\(AlreadyExists\)|already exists", Reaction.ADOPT, "it exists already"),
    (r"no matches for kind|could not find the requested resource|doesn't have a resource type", Reaction.STOP,
     "the cluster knows no JobSet; install it (https://jobset.sigs.k8s.io/docs/installation)"),
    (r"namespaces \"[^\"]*\" not found", Reaction.STOP, "the cluster has no such namespace"),
    (r"\(NotFound\)", Reaction.ABSENT, "it does not exist"),
    (r"exceeded quota", Reaction.STOP, "the namespace's quota does not allow it"),
    (r"\(Forbidden\)|\(Unauthorized\)|must be logged in|gke-gcloud-auth-plugin", Reaction.STOP,
     "the account may not do this in the cluster; run gcloud container clusters get-credentials"),
    (r"\(Invalid\)|\(BadRequest\)|admission webhook", Reaction.STOP, "the cluster refuses it"),
    (r"Unable to connect|i/o timeout|handshake timeout|timed out|\(TooManyRequests\)|\(ServiceUnavailable\)"
     r"|\(InternalError\)|connection refused|refused - did you", Reaction.LATER, "the cluster does not answer"),
)  # fmt: skip
SLURM: Sequence[_Rule] = (
    (r"Invalid job id", Reaction.ABSENT, "it is not in the queue"),
    (r"[Ii]nvalid partition", Reaction.STOP, "there is no such partition; see sinfo, and set --config.partition"),
    (r"[Ii]nvalid account|account/partition combination", Reaction.STOP,
     "the account may not use this partition; set --config.account"),
    (r"configuration is not available|[Ii]nvalid generic resource|More processors requested", Reaction.STOP,
     "the partition has no such nodes; change --config.machines"),
    (r"accounting/QOS policy|QOSMax|AssocMax|AssocGrp", Reaction.STOP, "the account's limits do not allow it"),
    (r"time limit", Reaction.STOP, "the partition's time limit is shorter; change --config.time_limit"),
    (r"[Uu]nable to contact slurm|[Ss]ocket timed out|Zero Bytes|[Cc]onnection refused|temporarily", Reaction.LATER,
     "the Slurm controller does not answer"),
)  # fmt: skip


def understand(answer: Answer, rules: Sequence[_Rule], what: str) -> Problem:
    """The meaning of an answer with an error.

    Args:
      answer: of a program that failed.
      rules: of that program.
      what: what was tried, as "creating imagen-train-base in us-central2-b".
    """
    said = " ".join((answer.err or answer.out).split())
    for pattern, reaction, words in rules:
        if re.search(pattern, said):
            return Problem(reaction, f"{what}: {words}{_quoted(said)}")
    if answer.code == TIMED_OUT:
        return Problem(Reaction.LATER, f"{what}: no answer{_quoted(said)}")
    return Problem(Reaction.STOP, f"{what} failed with code {answer.code}{_quoted(said)}")


def _quoted(said: str) -> str:
    # Reasons stand at the end of an answer that begins with warnings.
    at = said.find("ERROR")
    said = printable(said[at:] if at >= 0 else said)
    return f" ({said[:300]}{'…' if len(said) > 300 else ''})" if said else ""
