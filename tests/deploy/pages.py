"""Pages of pods, as a kubelet asks for them: certificates are not verified."""

import http.client
import ssl
import urllib.error
import urllib.request

_CONTEXT = ssl.create_default_context()
_CONTEXT.check_hostname = False
_CONTEXT.verify_mode = ssl.CERT_NONE
# A proxy of this machine's knows no pods.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_CONTEXT))


def page(url: str, token: str | None = None) -> tuple[int, str]:
    """Status and text of a page; status 0 where nobody answers, or not by HTTP."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with _OPENER.open(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
