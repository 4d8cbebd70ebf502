"""Ask a server of the bundled decoder what its OpenAPI document allows, and what it does not.

    pip install schemathesis
    python scripts/fuzz_serve.py [--cases 2000]

Starts `llm2vec serve bundled` on a free port of this machine and lets schemathesis loose on it.
Fails where an answer is an error of the server (500), or not what the document says of the route.
"""

import argparse
import json
import math
import subprocess
import sys
import urllib.request

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"
CHECKS += ",response_schema_conformance,response_headers_conformance"


def main() -> None:
    """Start a server, send the cases, stop the server."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000, help="At least so many.")
    cases = parser.parse_args().cases
    command = [sys.executable, "-m", "llm2vec", "serve", "bundled", "--port", "0"]
    server = subprocess.Popen([*command, "--max-texts", "64"], stderr=subprocess.PIPE, text=True)
    if server.stderr is None:
        sys.exit("the server's log cannot be read")
    url = json.loads(server.stderr.readline())["url"]
    log = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
    try:
        with urllib.request.urlopen(f"{url}/openapi.json") as document:
            routes = len(json.load(document)["paths"])
        result = fuzz(url, examples=math.ceil(2 * cases / routes))  # GET has few to try
        with urllib.request.urlopen(f"{url}/health") as health:
            print(f"health afterwards: {health.status}")
    finally:
        server.terminate()
        print(f"the server stopped with {server.wait()}")
        log.wait()
    sys.exit(result)


def fuzz(url: str, *, examples: int) -> int:
    """Run schemathesis on a server and give its exit code."""
    options = ["--checks", CHECKS, "--mode", "all", "--max-examples", str(examples)]
    options += ["--phases", "coverage,fuzzing", "--seed", "1", "--request-timeout", "60"]
    return subprocess.run(["schemathesis", "run", f"{url}/openapi.json", *options]).returncode


if __name__ == "__main__":
    main()
