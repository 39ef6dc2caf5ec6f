"""Which server W&B is, and whether it answers. Needs no wandb."""

from __future__ import annotations

import configparser
import os
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

CLOUD = "https://api.wandb.ai"
# Longer than a slow answer takes, and a wait that a user forgives. Without an answer wandb itself waits for 90 s.
ANSWERS_WITHIN_S = 10.0
# What a proxy says for a server that it cannot reach.
NOBODY_BEHIND = (502, 503, 504)


def server_url() -> str:
    """Of the server in use: the cloud's, or one of the user's own."""
    return os.environ.get("WANDB_BASE_URL") or setting("base_url") or CLOUD


def setting(name: str) -> str | None:
    """From wandb's own settings files, which ``wandb login`` writes; a later file wins."""
    folder = Path(os.path.expanduser(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")))
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([folder / "settings", Path("wandb") / "settings"])
    except configparser.Error:
        return None
    return parser.get("default", name, fallback=None)


def why_unreachable(within_s: float = ANSWERS_WITHIN_S) -> str | None:
    """Why the server in use cannot be reached, None if it answers, whatever it says; takes at most ``within_s``.

    Goes through the proxy of the usual variables, as wandb does, and sends no key.
    """
    url = server_url()
    host = urlsplit(url).netloc or url
    reasons: list[str | None] = []
    # A name that does not resolve can take minutes, without a way to set a limit.
    thread = threading.Thread(target=lambda: reasons.append(_ask(url, within_s)), daemon=True)
    thread.start()
    thread.join(within_s)
    if not reasons:
        return f"{host} does not answer within {within_s:g} s"
    return None if reasons[0] is None else f"{host} cannot be reached ({reasons[0]})"


def _ask(url: str, timeout_s: float) -> str | None:
    try:
        urllib.request.urlopen(url, timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}" if error.code in NOBODY_BEHIND else None
    except urllib.error.URLError as error:
        # A certificate that we do not know, and wandb may: somebody is there.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    except Exception:  # an answer that is not HTTP's
        return None
    return None
