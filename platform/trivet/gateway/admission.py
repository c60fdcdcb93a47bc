"""Admission: whether a request to a function URL may run the function, and whose it is."""

from __future__ import annotations

from collections.abc import Sequence

from anyio.to_thread import run_sync

from trivet.aws.refusals import Refused
from trivet.aws.sigv4 import Verifier, may_be_signed
from trivet.core.arns import Place
from trivet.core.functions import Function
from trivet.core.policies import INVOKE_URL, Verdict, judge_url
from trivet.core.roles import allows
from trivet.core.urls import FunctionUrl, Presented, Signer
from trivet.errors import Forbidden
from trivet.store.functions import FunctionStore

SERVICE = "lambda"  # what a request to a function URL is signed for

# Hashing this much would hold up every other request of this process.
_BIG_BODY_BYTES = 1_048_576

_MAX_VERDICTS = 10_000

_NO_POLICY = (
    "Forbidden. For troubleshooting Function URL authorization issues, see: "
    "https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html"
)


class Admission:
    """Judges requests by their signature and by the function's resource policy.

    `function_actions` are what functions may do with the credentials they run with.
    """

    def __init__(
        self,
        place: Place,
        functions: FunctionStore,
        verifier: Verifier,
        function_actions: Sequence[str] = (),
    ) -> None:
        self._function_actions = tuple(function_actions)
        self._place = place
        self._account_arn = f"arn:aws:iam::{place.account}:user/trivet"
        self._functions = functions
        self._verifier = verifier
        self._verdicts: dict[tuple[str, str, str], tuple[str, Verdict]] = {}

    async def admit(self, url: FunctionUrl, request: Presented) -> Signer | None:
        """Who signed `request`, or None where anybody may come. Raises what AWS would answer."""
        signer = await self._signer(request) if url.auth_type == "AWS_IAM" else None
        function = self._functions.cached(url.function) or await self._functions.get(url.function)
        if function is None:
            raise Forbidden(_NO_POLICY)
        verdict = self._verdict(function, url, signer)
        if verdict is Verdict.ALLOWED or (verdict is Verdict.SILENT and self._may(signer)):
            return signer
        raise Forbidden(_NO_POLICY)

    def _may(self, signer: Signer | None) -> bool:
        """Whether `signer` needs nobody's leave, as long as no statement denies it."""
        if signer is None:
            return False
        # A key of the account may do everything there; a function what functions may.
        is_account = signer.arn == self._account_arn
        return is_account or allows(self._function_actions, INVOKE_URL)

    def _verdict(self, function: Function, url: FunctionUrl, signer: Signer | None) -> Verdict:
        """What the policy says. Kept, because it can change only with the function's revision."""
        principal = signer.arn if signer else ""
        key = (function.name, url.auth_type, principal)
        revision, verdict = self._verdicts.get(key, ("", Verdict.SILENT))
        if revision == function.revision_id:
            return verdict
        verdict = judge_url(
            function.policy.values(),
            resource=self._place.function_arn(function.name),
            auth_type=url.auth_type,
            account=signer.account if signer else "",
            principal=principal,
        )
        if len(self._verdicts) >= _MAX_VERDICTS:
            self._verdicts.clear()  # most are of functions that are gone
        self._verdicts[key] = (function.revision_id, verdict)
        return verdict

    async def _signer(self, request: Presented) -> Signer:
        if not may_be_signed(request.query, request.headers):
            raise Forbidden("Forbidden")
        claim = self._verifier.claim(
            request.method, request.raw_path, request.query, request.headers
        )
        if claim.service != SERVICE:
            raise Refused(
                "InvalidSignatureException",
                f"Credential should be scoped to correct service: '{SERVICE}'. ",
                status=403,
            )
        if len(request.body) > _BIG_BODY_BYTES:
            verified = await run_sync(self._verifier.prove, claim, request.body)
        else:
            verified = self._verifier.prove(claim, request.body)
        account, session = self._place.account, verified.session
        return Signer(
            access_key=verified.access_key,
            account=account,
            arn=self._account_arn if session is None else session.arn(account),
            user_id=verified.access_key if session is None else session.user_id,
        )
