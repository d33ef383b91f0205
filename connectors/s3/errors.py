"""What S3 and boto3 say went wrong → an error whose type says what to do next. No message holds a key.

answer                                              type
412 (an `If-…` header did not hold)                 NotAsExpected
404 (no such key, version or upload)                Missing
404 in words that are none of S3's                  Away (a proxy whose server is down), to HEAD: Missing
404 NoSuchBucket, wrong region, a name no store has SpecError
no credentials, unknown profile                     SpecError
a session token that ran out                        Away (fresh ones are read for the next call)
401, 403                                            Refused
409, 429, 5xx, SlowDown, timeouts, cut connections  Away
400 of a role's token that ran out                  Away
403 InvalidObjectState (archived)                   Refused
403 RequestTimeTooSkewed (a clock is wrong)         Away
403 without a body, dated far from our clock        Away (an answer to HEAD names no code)
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from penstock.engine.errors import Away, PenstockError, Refused, SpecError, Temporary

if TYPE_CHECKING:
    from botocore.exceptions import ClientError


class NotAsExpected(PenstockError):
    """A condition of the call did not hold: the object is there already, or is no longer the one that was named.

    A put that was sent twice, because its first answer was lost, gets it too though it succeeded: read, and decide.
    """


class Missing(PenstockError):
    """No such object, version or upload."""


SLOW_DOWN_S = 5.0
"""Wait after SlowDown, where the server names no time: the client has tried several times by then. A guess."""
LOST_S = 1.0
"""Wait after a lost connection or a timeout. A guess."""
SKEWED_S = 600.0
"""S3 refuses requests that are dated more than 15 minutes from its own clock; answers take a while."""

_SLOW = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException",
                   "BandwidthLimitExceeded", "RequestThrottled", "ServiceUnavailable"})  # fmt: skip
_AGAIN = frozenset({"RequestTimeout", "ConditionalRequestConflict", "OperationAborted", "InternalError",
                    "IDPCommunicationError"})  # fmt: skip
_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_MISSING = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload", "NotFound"})
_NO_CODE = frozenset({"", "404"})
"""Of a 404 whose body is empty, plain text or a page of HTML."""
_MAY_LACK = frozenset({"HeadObject", "GetBucketVersioning"})
"""Calls that are answered so by S3 itself (a HEAD has no body), or by stores that don't know them."""
_KEYS = {
    "XAdminUserNotFound": "it does not know the access key",  # versitygw, as a 404
    "InvalidAccessKeyId": "it does not know the access key",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "it does not accept the session token",
    "TokenRefreshRequired": "the session token has expired",
    "ExpiredTokenException": "the token for the role has expired",  # STS, as the next
    "InvalidIdentityToken": "it does not accept the token for the role",
}
_RAN_OUT = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException",
                       "InvalidIdentityToken"})  # fmt: skip
"""Whoever gives out tokens gives out fresh ones as a rule."""
_BARE = frozenset({"400", "401", "403"})
"""An answer to HEAD names no code: these may mean the credentials."""
_CHAIN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"


@contextmanager
def translated(what: str, where: str) -> Generator[None]:
    """Foreign errors leave as ours. `what` was done, in words that follow "cannot": `read s3://b/k`."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _answered(error, what, where) from error
    except BotoCoreError as error:
        raise _unanswered(error, what, where) from error
    except ValueError as error:  # what boto3 says of an endpoint that is no URL
        raise SpecError(f"cannot {what} at {where}: {error}. Check endpoint.") from error
    except (HTTPError, OSError) as error:
        raise _lost(error, what, where) from error


def _answered(error: ClientError, what: str, where: str) -> PenstockError:
    """The server's refusal. Its own text is left out: some servers repeat keys in it."""
    response: Any = error.response
    code = str(response.get("Error", {}).get("Code", ""))
    meta = response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode", 0))
    said = f"S3 at {where} answered {status} {code}" if code != str(status) else f"S3 at {where} answered {status}"
    if status == 412:
        return NotAsExpected(f"cannot {what}: it is not what was expected there ({said}). Read it and decide again.")
    if code == "NoSuchBucket":
        return SpecError(f"cannot {what}: there is no such bucket at {where}. Make it, or mend the name.")
    if code in _SLOW or status in (429, 503):
        return Away(f"cannot {what} now: {said}.", retry_after_s=_retry_after(meta) or SLOW_DOWN_S)
    if code in _AGAIN or status in (408, 409) or status >= 500:
        return Away(f"cannot {what} now: {said}.", retry_after_s=_retry_after(meta) or LOST_S)
    if code == "RequestTimeTooSkewed" or (
        code == "403" and _skewed(meta)
    ):  # a clock that jumped is set right again, by itself as a rule
        message = f"cannot {what} now: this machine's clock and that of S3 at {where} differ. Set the clock."
        return Away(message, retry_after_s=SLOW_DOWN_S)
    if status == 404 and code in _NO_CODE and error.operation_name not in _MAY_LACK:
        return Away(
            f"cannot {what} now: what answers at {where} says 404, and not as S3 does: is the endpoint S3's?",
            retry_after_s=SLOW_DOWN_S,
        )
    if code in _MISSING or (status == 404 and code in _NO_CODE):
        return Missing(f"cannot {what}: it is not there ({said}).")
    return _refused(code, status, said, what, where)


def of_one_key(code: str, what: str, where: str) -> PenstockError:
    """What a call for many keys says of one, within an answer of 200: boto3 doesn't try that again."""
    if code in _SLOW or code in _AGAIN:
        return Away(f"cannot {what} now: S3 at {where} says {code}.", retry_after_s=LOST_S)
    return Refused(f"cannot {what}: S3 at {where} says {code or 'no reason'}.")


def _refused(code: str, status: int, said: str, what: str, where: str) -> PenstockError:
    if code in _REGION or status == 301:
        return SpecError(f"cannot {what}: the bucket is in another region ({said}). Set region.")
    if code in _KEYS:
        message = f"cannot {what}: S3 at {where} refused the credentials: {_KEYS[code]} ({code}). Mend: {_CHAIN}."
        return Away(message, retry_after_s=SLOW_DOWN_S) if code in _RAN_OUT else Refused(message)
    if code == "InvalidObjectState":
        return Refused(
            f"cannot {what}: it is archived ({said}). Restore it, or narrow source.pattern and start with --fresh."
        )
    if status in (401, 403):
        return Refused(f"cannot {what}: {said}. Grant these credentials that action, or mend: {_CHAIN}.")
    return Refused(f"cannot {what}: {said}. Check bucket, key and endpoint, and what that server supports.")


def refuses_credentials(error: PenstockError) -> bool:
    """Whether S3 may take the same call with other credentials."""
    response: Any = getattr(error.__cause__, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code in _KEYS or code in _BARE


def _unanswered(error: Exception, what: str, where: str) -> PenstockError:
    """boto3 itself gave up: no credentials, a name it won't send, or no answer."""
    from botocore import exceptions as boto

    match error:
        case boto.NoCredentialsError() | boto.PartialCredentialsError():
            return SpecError(f"cannot {what}: no AWS credentials were found: {_CHAIN}.")
        case boto.ProfileNotFound() | boto.ConfigNotFound() | boto.ConfigParseError():
            return SpecError(f"cannot {what}: the AWS profile or its file cannot be read. Mend AWS_PROFILE.")
        case boto.SSLError():
            return Temporary(f"cannot {what}: no TLS with S3 at {where}. Check endpoint and its certificate.")
        case boto.HTTPClientError() | boto.ConnectionError():
            return _lost(error, what, where)
        case boto.IncompleteReadError() | boto.ChecksumError() | boto.MetadataRetrievalError():
            return _lost(error, what, where)
        case boto.CredentialRetrievalError() | boto.SSOError():
            return Temporary(f"cannot {what}: the AWS credentials cannot be fetched now. Check role, SSO or profile.")
        case _:
            name = type(error).__name__
            return SpecError(f"cannot {what} at {where} ({name}). Check bucket, key, endpoint and region.")


def _lost(error: Exception, what: str, where: str) -> Away:
    return Away(
        f"cannot {what} now: S3 at {where} does not answer ({type(error).__name__}). Check endpoint and network.",
        retry_after_s=LOST_S,
    )


def _skewed(meta: Any) -> bool:
    """Whether the answer's date is far from this machine's clock. One that says no date is not."""
    try:
        at = parsedate_to_datetime(str(meta.get("HTTPHeaders", {}).get("date", "")))
    except ValueError:
        return False
    return abs(at.timestamp() - time.time()) > SKEWED_S


def _retry_after(meta: Any) -> float | None:
    """Seconds; a date, which S3 never sends, is left aside."""
    text = str(meta.get("HTTPHeaders", {}).get("retry-after", ""))
    return min(60.0, float(text)) if text.isdecimal() else None
