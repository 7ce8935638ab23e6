//! The API from another language: the example in `proto/examples` with grpcio and stubs generated from the
//! contract, and reflection without stubs.
//!
//! Skipped without `.venv-peers` (scripts/fixtures/setup-peers) or another Python with its packages, which
//! `FOIL_TEST_PYTHON` can name.

// Skipped tests print the reason.
#![allow(clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use foil_tests::{Process, Service, foil, foil_worker};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A Python with these packages.
fn python(packages: &str) -> Option<Command> {
    let named = std::env::var_os("FOIL_TEST_PYTHON").map(PathBuf::from);
    let program = named.unwrap_or_else(|| root().join(".venv-peers/bin/python"));
    let imports = Command::new(&program).args(["-c", &format!("import {packages}")]).output();
    if imports.is_ok_and(|output| output.status.success()) {
        return Some(Command::new(program));
    }
    eprintln!("skipped: a Python with {packages} (scripts/fixtures/setup-peers installs it)");
    None
}

fn finished(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("Python starts");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

#[test]
fn the_example_trains_and_loads_a_policy() {
    let packages = "grpc, grpc_tools, blake3, transformers, torch";
    let (Some(mut protoc), Some(mut example)) = (python(packages), python(packages)) else { return };
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "1"]);
    let _agent = Process::start(agent, &service.at("agent.log"));

    let stubs = service.at("stubs");
    std::fs::create_dir(&stubs).expect("a folder");
    let contract = root().join("proto");
    let option = |name: &str| format!("--{name}={}", stubs.display());
    protoc.args(["-m", "grpc_tools.protoc", "-I"]).arg(&contract);
    protoc.args([option("python_out"), option("grpc_python_out")]);
    let files = std::fs::read_dir(contract.join("foil/v1")).expect("the contract").flatten();
    protoc.args(files.map(|entry| entry.path()));
    finished(protoc);

    example.env("PYTHONPATH", &stubs).env("HF_HUB_OFFLINE", "1").arg(contract.join("examples/train.py"));
    example.arg(service.url().trim_start_matches("http://")).arg(service.at("policy"));
    let told = finished(example);
    assert!(told.contains("\nrank 0: "), "its logs: {told}");
    assert!(told.contains("r01.policy.train: ") && told.trim_end().ends_with("parameters"), "{told}");
    assert!(service.at("policy/model.safetensors").exists());
    assert!(service.foil(&["list"]).contains("letters-python"));
}

/// Requests the services and the messages of one of them, like grpcurl.
const REFLECT: &str = r#"
import sys
import grpc
from google.protobuf import descriptor_pb2, message_factory, descriptor_pool

pool = descriptor_pool.DescriptorPool()
file = descriptor_pb2.FileDescriptorProto(name="r.proto", package="grpc.reflection.v1", syntax="proto3")
request = file.message_type.add(name="ServerReflectionRequest")
request.field.add(name="file_containing_symbol", number=4, type=9, label=1)
request.field.add(name="list_services", number=7, type=9, label=1)
response = file.message_type.add(name="ServerReflectionResponse")
files = file.message_type.add(name="FileDescriptorResponse")
files.field.add(name="file_descriptor_proto", number=1, type=12, label=3)
services = file.message_type.add(name="ListServiceResponse")
service = file.message_type.add(name="ServiceResponse")
service.field.add(name="name", number=1, type=9, label=1)
services.field.add(name="service", number=1, type=11, label=3, type_name=".grpc.reflection.v1.ServiceResponse")
response.field.add(name="files", number=4, type=11, label=1, type_name=".grpc.reflection.v1.FileDescriptorResponse")
response.field.add(name="services", number=6, type=11, label=1, type_name=".grpc.reflection.v1.ListServiceResponse")
pool.Add(file)
make = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName("grpc.reflection.v1." + name))
Request, Response = make("ServerReflectionRequest"), make("ServerReflectionResponse")
channel = grpc.insecure_channel(sys.argv[1])
for version in ["v1", "v1alpha"]:
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=Request.SerializeToString,
        response_deserializer=Response.FromString,
    )
    listed = next(ask(iter([Request(list_services="*")])))
    print(version, *sorted(service.name for service in listed.services.service))
    found = next(ask(iter([Request(file_containing_symbol="foil.v1.Jobs")])))
    for raw in found.files.file_descriptor_proto:
        described = descriptor_pb2.FileDescriptorProto.FromString(raw)
        for service in described.service:
            print(version, described.name, service.name, *(method.name for method in service.method))
"#;

#[test]
fn reflection_describes_the_services_to_clients_without_stubs() {
    let Some(mut command) = python("grpc, google.protobuf") else { return };
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    command.args(["-c", REFLECT, service.url().trim_start_matches("http://")]);
    let told = finished(command);
    for version in ["v1", "v1alpha"] {
        let listed =
            told.lines().find(|line| line.starts_with(&format!("{version} foil.v1."))).expect("a list");
        for name in ["foil.v1.Jobs", "foil.v1.Artifacts", "grpc.health.v1.Health"] {
            assert!(listed.contains(name), "{name}: {told}");
        }
        assert!(told.contains(&format!("{version} foil/v1/jobs.proto Jobs Submit Get List")), "{told}");
    }
}
