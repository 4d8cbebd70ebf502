"""What is served: a folder that could run something or leads elsewhere is refused."""

import json
import pickle
import shutil
import socket
import zipfile

import pytest
from conftest import DECODERS

from llm2vec.cli.main import app
from llm2vec.errors import ModelError, UsageError
from llm2vec.serving.folder_check import check_folder
from llm2vec.serving.limits import Limits
from llm2vec.serving.served import name_folders, open_served
from llm2vec.serving.server import is_loopback, listen


@pytest.fixture
def folder(tmp_path):
    """A copy of a decoder's folder, to be broken."""
    return shutil.copytree(DECODERS / "qwen3", tmp_path / "model")


def refused(folder, match, **how):
    with pytest.raises(ModelError, match=match):
        check_folder(folder, **how)


def test_a_folder_of_safetensors_is_served_under_its_name(folder):
    check_folder(folder)
    (served,) = open_served(name_folders([str(folder)]), limits=Limits(batch_tokens=77))
    assert (served.name, served.batch_tokens) == ("model", 77)
    assert served.works()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "deep/optimizer.pt"])
def test_a_pickle_is_refused_by_its_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"anything")
    refused(folder, f"{name} is a pickle")


def test_a_pickle_is_refused_by_what_it_holds(folder):
    (folder / "notes.txt").write_bytes(pickle.dumps({"harmless": 1}))
    refused(folder, "notes.txt is a pickle")
    (folder / "notes.txt").unlink()
    with zipfile.ZipFile(folder / "weights.safetensors", "w") as archive:
        archive.writestr("data.pkl", b"")
    refused(folder, "weights.safetensors is a pickle")


def test_raw_weights_of_openvino_are_no_pickle_unless_they_hold_one(folder):
    weights = folder / "openvino_model.bin"
    weights.write_bytes(bytes(100))
    check_folder(folder)
    weights.write_bytes(pickle.dumps({}))
    refused(folder, "pickle")


def test_a_link_that_leads_outside_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere.json").write_text("{}")
    (folder / "extra.json").symlink_to(tmp_path / "elsewhere.json")
    refused(folder, "extra.json is a link to .*elsewhere.json")
    (folder / "extra.json").unlink()
    (folder / "sub").symlink_to(tmp_path)
    refused(folder, "sub is a link to")
    (folder / "sub").unlink()
    (folder / "inside.json").symlink_to(folder / "config.json")
    check_folder(folder)


@pytest.mark.parametrize("path", ["../other", "/etc"])
def test_a_configuration_that_leads_outside_is_refused(folder, path):
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": path}]))
    refused(folder, "modules.json leads outside")
    (folder / "modules.json").unlink()
    index = {"weight_map": {"a": "model.safetensors", "b": f"{path}/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "model.safetensors.index.json leads outside")


def test_an_adapter_is_refused_since_its_base_lies_elsewhere(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    refused(folder, "merge it")


def test_python_code_is_refused_unless_the_operator_says_so(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "--trust-remote-code")
    check_folder(folder, trust_remote_code=True)


def test_a_folder_without_safetensors_is_refused(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "no \\*.safetensors")


def test_folders_are_named_by_themselves_or_by_the_operator(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other" / "model")
    names = [each.name for each in name_folders([str(folder), f"second={other}", "bundled"])]
    assert names == ["model", "second", "bundled"]
    with pytest.raises(UsageError, match="NAME=FOLDER"):
        name_folders([str(folder), str(other)])
    with pytest.raises(ModelError, match="there is no folder"):
        name_folders(["somebody/a-model"])
    with pytest.raises(ModelError, match="there is no folder"):
        name_folders([str(tmp_path / "missing")])


def test_an_address_that_is_taken_is_an_error_of_use():
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(UsageError, match=f"port {taken.getsockname()[1]}"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


def test_loopback_is_told_from_what_others_reach():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))


def test_the_server_listens_on_loopback_unless_told_otherwise():
    import typer

    commands = typer.main.get_command(app).commands
    (host,) = [each for each in commands["serve"].params if each.name == "host"]
    assert is_loopback(host.default)


def test_an_answer_does_not_wait_for_the_client_to_confirm_its_head():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
