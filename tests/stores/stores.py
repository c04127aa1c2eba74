"""`cmf fetch` and `cmf run` against servers that others wrote for the protocols of object stores.

usage: stores.py CMF MODEL NODE_MODULES

CMF is a `cmf` built with the feature `object-store`, MODEL a file that it can talk with, NODE_MODULES a
folder with the packages `azurite` and `s3rver`. Each server listens on the loopback and is stopped at the end:

- moto, which verifies signatures, and s3rver for S3;
- Azurite for Azure, which verifies shared keys;
- gcp-storage-emulator for Google Cloud Storage, which asks for no credentials, and whose answers lack the
  headers `ETag` and `Last-Modified`, which those of the store have.

Of each the whole model is fetched, then what a small budget needs, then the rest of that; wrong credentials and
a missing object must be refused at once; and `cmf run` must say the same from the bucket as from the file.

All servers are tried; of one that fails this says what went wrong and what the server said, and ends with 1.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.parse
import urllib.request

KEY = "folder/a model.cmf"
# Azurite's own account, which its documentation gives.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Wrong(Exception):
    """What a server or `cmf` did and should not have done."""


def expect(good, *about):
    """As `assert`, which python leaves out when it is told to."""
    if not good:
        raise Wrong(": ".join(str(part) for part in about))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A process that listens on a port, while the block runs."""

    def __init__(self, folder, command, environment=None):
        self.port = free_port()
        self.folder = folder
        self.command = [part.format(port=self.port, folder=folder) for part in command]
        self.environment = {**os.environ, **(environment or {})}

    def __enter__(self):
        self.log = open(self.folder / "server.log", "wb")
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=self.environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.1)
        self.__exit__()
        raise Wrong(f"{' '.join(self.command)}: does not listen")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


def s3_client(server, access, secret):
    import boto3
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"}, region_name="eu-central-1")
    place = {"endpoint_url": server.url, "aws_access_key_id": access, "aws_secret_access_key": secret}
    return lambda service: boto3.client(service, config=config, **place)


def aws(server, access, secret):
    return {
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ALLOW_HTTP": "true",
    }


def moto(server, model):
    client = s3_client(server, "first", "first")
    s3, iam = client("s3"), client("iam")
    s3.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_object(Bucket="bucket", Key=KEY, Body=model)
    iam.create_user(UserName="reader")
    policy = {"Version": "2012-10-17"}
    policy["Statement"] = [{"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}]
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(policy))
    # The fifth and last action that needs no signature.
    made = iam.create_access_key(UserName="reader")["AccessKey"]
    return aws(server, made["AccessKeyId"], made["SecretAccessKey"])


def s3rver(server, model):
    s3_client(server, "S3RVER", "S3RVER")("s3").put_object(Bucket="bucket", Key=KEY, Body=model)
    return aws(server, "S3RVER", "S3RVER")


def azurite(server, model):
    from azure.storage.blob import BlobServiceClient

    url = f"{server.url}/{AZURE_ACCOUNT}"
    credential = {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}
    # The newest version of the protocol that the client knows may be newer than the server.
    client = BlobServiceClient(url, credential=credential, api_version="2024-08-04")
    client.create_container("bucket").upload_blob(KEY, model)
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        "AZURE_STORAGE_ENDPOINT": url,
        "AZURE_ALLOW_HTTP": "true",
    }


def gcs(server, model):
    name = urllib.parse.quote(KEY, safe="")
    where = f"{server.url}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
    kind = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(where, model, kind, method="POST")).read()
    return {
        "GOOGLE_BASE_URL": server.url,
        "GOOGLE_BEARER_TOKEN": "any",
        "GOOGLE_ALLOW_HTTP": "true",
    }


def stores(modules):
    python, node = sys.executable, modules / ".bin"
    yield (
        "moto",
        "s3",
        [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", "{port}"],
        {"INITIAL_NO_AUTH_ACTION_COUNT": "5"},
        moto,
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
    )
    options = ["-a", "127.0.0.1", "-p", "{port}", "-d", "{folder}", "--configure-bucket", "bucket", "--silent"]
    yield "s3rver", "s3", [str(node / "s3rver"), *options], {}, s3rver, None
    options = ["--blobHost", "127.0.0.1", "--blobPort", "{port}", "--location", "{folder}", "--silent"]
    options += ["--disableTelemetry"]
    yield "azurite", "az", [str(node / "azurite-blob"), *options], {}, azurite, {"AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}
    options = ["start", "--host", "127.0.0.1", "--port", "{port}", "--in-memory", "--default-bucket", "bucket"]
    emulator = "from gcp_storage_emulator.__main__ import main; import sys; sys.exit(main())"
    yield "gcp-storage-emulator", "gs", [python, "-c", emulator, *options], {}, gcs, None


def check(cmf, name, scheme, variables, wrong, model, folder):
    url = f"{scheme}://bucket/{urllib.parse.quote(KEY)}"

    def run(*arguments, **changes):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "AZURE_", "GOOGLE_"))}
        command = [str(cmf), *arguments]
        environment = {**clean, **variables, **changes}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)

    def good(*arguments):
        done = run(*arguments)
        expect(done.returncode == 0, " ".join(done.args), done.stderr.strip())
        return done.stdout

    whole = model.read_bytes()
    report = json.loads(good("fetch", url, "-o", "whole.cmf", "--json"))
    expect(report["complete"] and report["file_bytes"] == len(whole), "not the whole file", report)
    expect((folder / "whole.cmf").read_bytes() == whole, "other bytes")

    report = json.loads(good("fetch", url, "-o", "part.cmf", "--budget", "min", "--json"))
    expect(not report["complete"], "more than a budget", report)
    good("fetch", url, "-o", "part.cmf", "--quiet")
    expect((folder / "part.cmf").read_bytes() == whole, "other bytes after a budget")

    # More than the least would come while it talks.
    words = ("--raw", "--json", "-n", "4", "-p", "w1 w2", "--budget", "min")

    def text(where):
        return json.loads(good("run", where, "--cache", "cache", *words).splitlines()[-1])["text"]

    expect(text(url) == text(str(model)), "other words")

    started = time.monotonic()
    missing = run("fetch", url + "-missing", "-o", "missing.cmf", "--quiet")
    expect(missing.returncode == 2, "an object that is not there is not refused", missing)
    refused = None
    if wrong:
        refused = run("fetch", url, "-o", "wrong.cmf", "--quiet", **wrong)
        expect(refused.returncode == 2, "wrong credentials are not refused", refused)
    expect(time.monotonic() - started < 10, "what is refused is asked for again")
    print(f"{name}: whole, in parts, talking: good")
    print(f"  nothing there: {missing.stderr.strip()}")
    if refused:
        print(f"  wrong credentials: {refused.stderr.strip()}", flush=True)


def main():
    cmf, model, modules = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    failed = []
    for name, scheme, command, environment, prepare, wrong in stores(modules):
        with tempfile.TemporaryDirectory() as place:
            place = pathlib.Path(place)
            (place / "server").mkdir()
            try:
                with Server(place / "server", command, environment) as server:
                    variables = prepare(server, model.read_bytes())
                    check(cmf, name, scheme, variables, wrong, model, place)
            except Exception as error:
                failed.append(name)
                print(f"{name}: FAILED: {error}", flush=True)
                if not isinstance(error, Wrong):
                    traceback.print_exc()
                log = place / "server" / "server.log"
                said = log.read_text(errors="replace").splitlines() if log.exists() else []
                print("\n".join(f"  {name} said: {line}" for line in said[-20:]), flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
