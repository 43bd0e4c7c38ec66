"""The part of W&B's server that runs, sweeps and agents need, on loopback; it records what it receives."""

import gzip
import itertools
import json
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml


class WandbServer:
    """The state of a server.

    Attributes:
        received: every request, (path, body).
        uploaded: files by their path, `<run>/<name>`.
        runs: by their ids: config, history, summary, exit code.
        sweeps: by their ids: the config.
        states: of the sweeps, by their ids.
        views: workspaces and reports, as they were sent.
        patient: whether early termination ends no run.
    """

    def __init__(self) -> None:
        self.received: list[tuple[str, dict]] = []
        self.uploaded: dict[str, bytes] = {}
        self.runs: dict[str, dict] = defaultdict(lambda: {"config": {}, "history": [], "summary": {}, "exit": None})
        self.sweeps: dict[str, dict] = {}
        self.states: dict[str, str] = {}
        self.views: list[dict] = []
        self.patient = False
        self._waiting: dict[str, list[dict]] = {}
        self._agents: dict[str, str] = {}
        self._lock = threading.Lock()

    def data(self, query: str, values: dict, url: str) -> dict:
        """The answer to a GraphQL query."""
        if "upsertView" in query:
            self.views.append(values)
            project = {"id": "p", "name": values["projectName"], "entityName": values["entityName"]}
            view = {"id": f"view{len(self.views)}", "type": values["type"], "name": values["name"], "project": project,
                    "displayName": values["displayName"], "description": values.get("description") or "",
                    "spec": values["spec"], "updatedAt": "2026-01-01T00:00:00", "createdAt": "2026-01-01T00:00:00",
                    "user": None, "previewUrl": None}  # fmt: skip
            return {"upsertView": {"view": view, "inserted": True}}
        if "UpsertSweepState" in query:
            self.states[values["id"]] = values["state"]
            return {"upsertSweep": {"sweep": {"state": values["state"]}}}
        if "upsertSweep" in query:
            return self._upsert_sweep(values)
        if "enqueueSweepRun" in query:
            return {"enqueueSweepRun": self._enqueue(values)}
        if "query Stopped(" in query:
            stopped = any(
                self._is_stopped(sweep, values["r"]) for sweep in self.sweeps if values["r"] in self.of_sweep(sweep)
            )
            return {"project": {"run": {"stopped": stopped}}}
        if "stopRun" in query:
            self.runs[values["id"]]["stop"] = True
            return {"stopRun": {"success": True}}
        if "createAgent" in query:
            agent = f"agent{len(self._agents)}"
            self._agents[agent] = values["sweep"]
            return {"createAgent": {"agent": {"id": agent}}}
        if "agentHeartbeat" in query:
            return {"agentHeartbeat": {"agent": {"id": values["id"]}, "commands": json.dumps(self._commands(values))}}
        if "upsertBucket" in query:
            return self._upsert_run(values)
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{url}/upload/{values['run']}/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "ArtifactType" in query:
            return {"project": None}
        if "createArtifact(" in query:  # an artifact that it already has
            artifact = {"id": "a", "state": "COMMITTED", "versionIndex": 0, "artifactSequence": None}
            return {"createArtifact": {"artifact": artifact}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "p", "internalId": "cDox"}}
        if "projects: models" in query or "query GetProjects" in query:
            node = {"id": "p", "name": "scores", "entityName": "somebody", "user": None,
                    "createdAt": "2026-01-01T00:00:00", "isBenchmark": False}  # fmt: skip
            edges = [{"node": node, "cursor": "p"}]
            return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": [{"name": "SWEEPS_LOCAL_SCHEDULER", "isEnabled": True}]}}
        if "viewer" in query:
            viewer = {"id": "v", "entity": "somebody", "username": "somebody", "flags": "{}", "email": "a@b.c",
                      "name": "somebody", "teams": {"edges": []}, "apiKeys": {"edges": []}, "admin": False}  # fmt: skip
            return {"viewer": viewer}
        if "SweepWatchedRuns" in query or "SweepRunsWithHistory" in query:
            return {"project": self._polled(values)}
        if "sweep(" in query:
            return {"project": {"id": "p", "sweep": self._sweep(values)}}
        if "runs(" in query:
            runs = self._runs(json.loads(values.get("filters") or "{}"))
            return {"project": {"id": "p", "internalId": "1", "runCount": len(runs["edges"]), "runs": runs}}
        return {}

    def _upsert_sweep(self, values: dict) -> dict:
        name = f"sweep{len(self.sweeps)}"
        config = yaml.safe_load(values["config"])
        self.sweeps[name], self.states[name] = config, "RUNNING"
        project = {"id": "p", "name": values["projectName"], "entity": {"id": "e", "name": "somebody"}}
        answer = {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}
        if "scheduler" in config:  # it draws the trials
            self._waiting[name] = []
            return {"upsertSweep": answer}
        flat = {key: entry.get("values", [entry.get("value")]) for key, entry in config["parameters"].items()}
        trials = [dict(zip(flat, each, strict=True)) for each in itertools.product(*flat.values())]
        self._waiting[name] = [
            {"run_id": f"{name}-{i}", "args": {key: {"value": value} for key, value in trial.items()}}
            for i, trial in enumerate(trials)
        ]
        return {"upsertSweep": answer}

    def _enqueue(self, values: dict) -> dict:
        """Queues a trial that a scheduler has drawn."""
        with self._lock:
            name, settings = values["id"], json.loads(values["config"])
            run = f"{name}-{len(self.of_sweep(name))}"
            self.runs[run] |= {
                "sweep": name,
                "config": settings,
                "settings": {key: v["value"] for key, v in settings.items()},
            }
            self._waiting[name].append({"run_id": run, "args": settings})
        return {"id": run, "runQueueItemId": run}

    def of_sweep(self, name: str) -> dict[str, dict]:
        """The runs of a sweep's trials, by their ids, in the order in which they were queued or handed out."""
        return {run: found for run, found in self.runs.items() if found.get("sweep") == name and "settings" in found}

    def _polled(self, values: dict) -> dict:
        """What a scheduler asks for: the state of the sweep, and its runs with their metrics."""
        name = values["sweep"]
        wanted = json.dumps(json.loads(values.get("filters") or "{}"))
        edges = []
        for run, found in self.of_sweep(name).items():
            if "filters" in values and f'"{run}"' not in wanted:
                continue
            history = [{"_step": i, **line} for i, line in enumerate(found["history"])]
            node = {"id": run, "name": run, "state": self._state(run), "config": json.dumps(found["config"]),
                    "summaryMetrics": json.dumps(found["summary"]), "sampledHistory": [history]}  # fmt: skip
            edges.append({"node": node})
        runs = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"sweep": {"state": self.states[name], "runs": runs}, "runs": runs}

    def _state(self, run: str) -> str:
        found = self.runs[run]
        if found["exit"] is None:
            return "running" if found["history"] or found.get("handed") else "pending"
        return "finished" if found["exit"] == 0 else "failed"

    def _sweep(self, values: dict) -> dict | None:
        config = self.sweeps.get(values.get("name") or values.get("sweep"))
        if config is None:
            return None
        name = values.get("name") or values.get("sweep")
        state = self.states.get(name, "FINISHED")
        return {"id": name, "name": name, "config": yaml.safe_dump(config), "state": state, "bestLoss": None,
                "displayName": config.get("name"), "createdAt": "2026-01-01T00:00:00", "heartbeatAt": None,
                "updatedAt": None, "description": None, "method": config["method"], "priorRuns": {"edges": []},
                "controllerRunName": f"controller-{name}", "runs": {"edges": []},
                "runCount": len(self.runs), "runCountExpected": None}  # fmt: skip

    def _commands(self, values: dict) -> list[dict]:
        """The next trial for an idle agent, a stop for a run that hyperband ends, or exit after the last trial."""
        name, running = self._agents[values["id"]], json.loads(values["runState"])
        stopped = [{"type": "stop", "run_id": run} for run in running if self._is_stopped(name, run)]
        if stopped or running:
            return stopped
        with self._lock:
            if not self._waiting[name]:
                drawing = "scheduler" in self.sweeps[name] and self.states[name] == "RUNNING"
                return [] if drawing else [{"type": "exit"}]
            trial = self._waiting[name].pop(0)
        settings = {key: entry["value"] for key, entry in trial["args"].items()}
        self.runs[trial["run_id"]] |= {"settings": settings, "sweep": name, "handed": True}
        return [{"type": "run", **trial, "program": self.sweeps[name].get("program")}]

    def _is_stopped(self, name: str, run: str) -> bool:
        """Whether the server has asked for the end of a run."""
        return self.runs[run].get("stop", False) or self._is_poor(name, run)

    def _is_poor(self, name: str, run: str) -> bool:
        """Whether early termination ends a run: as soon as it has logged its metric, the strictest rule."""
        metric = self.sweeps[name].get("metric", {}).get("name")
        poor = not self.patient and "early_terminate" in self.sweeps[name]
        return poor and any(metric in line for line in self.runs[run]["history"])

    def _upsert_run(self, values: dict) -> dict:
        if values.get("config"):
            self.runs[values["name"]]["config"].update(json.loads(values["config"]))
        self.runs[values["name"]].update({key: values[key] for key in ("project", "sweep", "jobType") if values.get(key)})
        project = {"id": "p", "name": values.get("project"), "entity": {"id": "e", "name": "somebody"}}
        self.runs[values["name"]]["started"] = self.runs[values["name"]].get("started", 0) + 1
        bucket = {"id": "b", "name": values.get("name"), "displayName": values.get("displayName"), "config": "{}",
                  "historyLineCount": 0, "project": project, "sweepName": values.get("sweep")}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _runs(self, filters: dict) -> dict:
        sweeps = [part["sweep"] for part in filters.get("$and", []) if "sweep" in part]
        edges = []
        for name, run in self.runs.items():
            if sweeps and run.get("sweep") not in sweeps:
                continue
            state = self._state(name)
            node = {"id": name, "name": name, "displayName": name, "tags": [], "state": state, "group": None,
                    "jobType": None, "commit": None, "readOnly": False, "createdAt": "2026-01-01T00:00:00",
                    "heartbeatAt": "2026-01-01T00:00:00", "description": None, "notes": None, "historyLineCount": 1,
                    "historyKeys": None, "config": json.dumps(run["config"]), "systemMetrics": "{}", "projectId": "1",
                    "summaryMetrics": json.dumps(run["summary"]), "sweepName": run.get("sweep"),
                    "user": {"name": "somebody", "username": "somebody"}}  # fmt: skip
            edges.append({"node": node, "cursor": name})
        return {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}

    def stream(self, run: str, body: dict) -> None:
        """Records what a run logs, and its exit code."""
        for name, part in body.get("files", {}).items():
            lines = (
                [json.loads(line) for line in part["content"]] if name.endswith(("history.jsonl", "summary.json")) else []
            )
            if name == "wandb-history.jsonl":
                self.runs[run]["history"] += lines
            elif name == "wandb-summary.json":
                self.runs[run]["summary"] = lines[-1]
        if body.get("preempting"):
            self.runs[run]["preempting"] = True
        if body.get("complete"):
            self.runs[run]["exit"] = body.get("exitcode", 0)
            if body.get("exitcode") and self.runs[run].pop("preempting", False):  # it is handed out again
                self.runs[run] |= {"exit": None, "preempted": self.runs[run].get("preempted", 0) + 1}
                args = {key: {"value": value} for key, value in self.runs[run]["settings"].items()}
                self._waiting[self.runs[run]["sweep"]].insert(0, {"run_id": run, "args": args})

    def images(self, run: str) -> list[str]:
        """The names of the pictures that a run has uploaded."""
        return [name.split("/", 1)[1] for name in self.uploaded if name.startswith(f"{run}/media/images/")]


class _Handler(BaseHTTPRequestHandler):
    state: WandbServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        if self.path.startswith("/upload/"):
            self.state.uploaded[self.path.removeprefix("/upload/")] = content
            return self.answer({})
        try:
            body = json.loads(content)
        except ValueError:  # telemetry of clients
            return self.answer({})
        self.state.received.append((self.path, body))
        if self.path.endswith("/file_stream"):
            self.state.stream(self.path.split("/")[-2], body)
            return self.answer({})
        url = f"http://{self.headers['Host']}"
        return self.answer({"data": self.state.data(body.get("query", ""), body.get("variables") or {}, url)})

    do_PUT = do_POST

    def answer(self, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serving():
    """A running server: its state and its address."""
    state = WandbServer()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
