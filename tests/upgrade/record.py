"""Record what this version leaves on the disks of a small tree: `python -m tests.upgrade.record VERSION`, once for each release.

A recorded folder is never written again: it is what the version before has left, and every later one must open it. Only the stores are
kept, not the identities, so nothing secret is in the repository (and no Secret is in these stores).
"""

import shutil
import sys
import tempfile
from pathlib import Path

from e2e.support import API, APPS, growing, talker, until

FIXTURES = Path(__file__).parent / "fixtures"


def main(version: str) -> None:
    target = FIXTURES / version
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder, growing(Path(folder)) as tree:
        root = tree.root()
        region = tree.region("region-a", root)
        tree.edge("edge-1", region)
        until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
        root.token("--expires", "1h")
        root.banyan("user", "create", "ann", "--group", "view")
        root.ask("PATCH", f"{API}/clusters/edge-1", {"metadata": {"labels": {"zone": "north"}}}, kind="application/merge-patch+json")
        settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"word": "kept"}}
        assert root.ask("POST", "/api/v1/namespaces/default/configmaps", settings)[0] == 201
        assert root.ask("POST", APPS, talker("talker"))[0] == 201
        until("it runs", lambda: root.status("talker").get("ready") == 1)
        for site in tree.sites.values():
            site.stop()
            shutil.copy(site.folder / "store.db", target / f"{site.name}.db")


if __name__ == "__main__":
    main(sys.argv[1])
