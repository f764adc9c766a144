"""Certificates for tests: an authority, a server and a client, made once per session with the `openssl` program.

    made = Certificates(directory, peer("openssl"))       # or the fixture `certificates`
    made.server_context(), made.client_context()

The server is localhost, 127.0.0.1 and ::1; another one is other.example; the client is called "a client"; a stranger
has a server's certificate of its own making.
"""
from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any

CONFIG = """
[req]
distinguished_name = empty
[empty]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
authorityKeyIdentifier = keyid
[other]
basicConstraints = CA:FALSE
subjectAltName = DNS:other.example
authorityKeyIdentifier = keyid
[client]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
authorityKeyIdentifier = keyid
"""


class Certificates:
    def __init__(self, directory: Path, program: str) -> None:
        self.directory = directory
        self.program = program
        self.config = directory / "openssl.cnf"
        self.config.write_text(CONFIG)
        self.authority = self.make("authority", "authority", signed_by=None)
        self.server = self.make("server", "localhost", signed_by=self.authority)
        self.other = self.make("other", "other.example", signed_by=self.authority)
        self.client = self.make("client", "a client", signed_by=self.authority)
        self.stranger = self.make("server", "localhost", signed_by=None, name="stranger")

    def make(self, kind: str, common_name: str, signed_by: Path | None, name: str = "") -> Path:
        """A file with a key and its certificate."""
        name = name or kind
        key, request, certificate = (self.directory / f"{name}.{end}" for end in ("key", "request", "certificate"))
        both = self.directory / f"{name}.pem"
        self.run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        self.run("req", "-new", "-config", self.config, "-key", key, "-subj", f"/CN={common_name}", "-out", request)
        signer = ("-signkey", key) if signed_by is None else (
            "-CA", signed_by, "-CAkey", signed_by, "-CAserial", self.directory / "serial", "-CAcreateserial")
        self.run("x509", "-req", "-in", request, *signer, "-days", "30", "-sha256", "-extfile", self.config,
                 "-extensions", kind, "-out", certificate)
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        return both

    def run(self, *arguments: Any) -> None:
        done = subprocess.run([self.program, *map(str, arguments)], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done

    def server_context(self, client_certificate: bool = False) -> ssl.SSLContext:
        """client_certificate: one is required of clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        if client_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.authority)
        return context

    def client_context(self, client_certificate: bool = False) -> ssl.SSLContext:
        """It trusts the authority, verifies the name, and with client_certificate has one to show."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if client_certificate:
            context.load_cert_chain(self.client)
        return context
