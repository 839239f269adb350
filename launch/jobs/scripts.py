"""Shell text that runs a phase on a host, and starts it again there."""

from imagen_jax.errors import INTERRUPTED, RETRY
from launch.jobs.job import Restarts

# A function that says whether an exit code asks for another start; the same rule as `job.is_retryable`.
IS_RETRYABLE = f"""\
is_retryable() {{ [[ $1 -eq {RETRY} || ($1 -gt 128 && $1 -ne {INTERRUPTED}) ]]; }}"""


def restarting(run: str, ended: str, restarts: Restarts, last: str = "true") -> str:
    """Lines of bash that run a command until it needs no restart, and write how it ended.

    Args:
      run: the command, or a function.
      ended: the file that gets "CODE SECONDS": exit code, and the time since 1970. An expression of bash.
      restarts: how often.
      last: a command to run before that file is there: afterwards the machine may be gone.
    """
    return f"""\
{IS_RETRYABLE}
restarts=0
wait_s={restarts.wait_s:.0f}
while true; do
  started=$SECONDS
  {run}
  code=$?
  is_retryable "$code" || break
  if ((SECONDS - started >= {restarts.healthy_s:.0f})); then
    restarts=0
    wait_s={restarts.wait_s:.0f}
  fi
  restarts=$((restarts + 1))
  if ((restarts > {restarts.max_restarts})); then break; fi
  echo "ended with code $code; restart $restarts of {restarts.max_restarts} in $wait_s s"
  sleep "$wait_s"
  wait_s=$((wait_s * 2 > {restarts.max_wait_s:.0f} ? {restarts.max_wait_s:.0f} : wait_s * 2))
done
echo "ended with code $code"
{last}
echo "$code $(date +%s)" >{ended}.part
mv {ended}.part {ended}
"""
