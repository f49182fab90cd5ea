"""A reference orchestratord and pool-managerd: the endpoints that are documented, and no more.

POST /v1/workers/register    Authorization: Bearer, {pool_id, replica_id}
-> {ok, identity, pool_id, replica_id}
401 {code: 40101 MISSING_TOKEN | 40102 BAD_TOKEN}
POST /v1/workers/heartbeat   the same, a readiness record; 404 for a worker it does not know
GET  /v1/capabilities        the capability document
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from worker_adapters.discovery import AuthError, BearerAuth
from worker_adapters.testing.wire import Connection, RawServer, Received, response

if TYPE_CHECKING:
    from worker_adapters.discovery import Capabilities

TOKEN = "the-token-of-workers"
HEARTBEAT = "/v1/workers/heartbeat"


class Orchestrator(RawServer):
    """Keeps a registry of workers, and loses it when it restarts."""

    def __init__(self, capabilities: Capabilities | None = None) -> None:
        super().__init__()
        self.auth = BearerAuth([TOKEN])
        self.capabilities = capabilities
        self.workers: dict[tuple[str, str], dict[str, Any] | None] = {}
        self.registrations = 0
        self.refusing: tuple[int, dict[str, Any]] | None = None
        """What it answers to everything, for as long as this is set."""
        self.lying: dict[str, Any] = {}
        """Fields that its answers to a registration have wrong."""

    def restart(self) -> None:
        self.workers.clear()

    async def play(self, connection: Connection) -> None:
        while True:
            request = await connection.request()
            status, body = await self.answered(request)
            await connection.send(response(json.dumps(body), status, "application/json"))

    async def answered(self, request: Received) -> tuple[str, Any]:
        if self.refusing is not None:
            return f"{self.refusing[0]} X", self.refusing[1]
        if request.route == "GET /v1/capabilities" and self.capabilities is not None:
            return "200 OK", json.loads(await self.capabilities.json())
        try:
            identity = self.auth.check(request.headers.get("authorization"))
        except AuthError as error:
            return "401 Unauthorized", error.body
        key = (request.json["pool_id"], request.json["replica_id"])
        match request.route:
            case "POST /v1/workers/register":
                self.registrations += 1
                self.workers.setdefault(key, None)
                pool_id, replica_id = key
                answer = {"ok": True, "identity": identity, "pool_id": pool_id}
                return "200 OK", answer | {"replica_id": replica_id} | self.lying
            case "POST /v1/workers/heartbeat":
                if key not in self.workers:
                    return "404 Not Found", {"code": 40401, "message": "UNKNOWN_WORKER"}
                self.workers[key] = request.json
                return "200 OK", {"ok": True}
        return "404 Not Found", {}
