"""Somebody who reads a document and types its commands in.

What follows them there is what they print.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from containers.engine import wait_until
from kit.documents import occurs

SECONDS = 300.0  # for one command
PATIENCE = 90.0  # seconds until a command prints what it should


class Reader:
    """The reader.

    Args:
        directory: where the commands are typed in.
        replacements: what of the text is called otherwise here, such as an image's name.
        variables: environment variables beside those of the tests.

    """

    def __init__(
        self,
        directory: Path,
        replacements: Mapping[str, str],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.directory, self.replacements = directory, replacements
        self.environment = os.environ | dict(variables or {})

    def translate(self, command: str) -> str:
        """Return a command as it has to be here."""
        for written, real in self.replacements.items():
            command = command.replace(written, real)
        return command

    def run(self, command: str) -> tuple[int, list[str]]:
        """Run a command; return its exit code and the lines that it printed."""
        done = subprocess.run(
            ["sh", "-c", self.translate(command)],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        return done.returncode, done.stdout.splitlines()

    def do(self, command: str) -> list[str]:
        """Run a command that has to work; return the lines that it printed."""
        code, said = self.run(command)
        assert code == 0, f"{command}: exit code {code}\n" + "\n".join(said)
        return said

    def type_in(self, text: str) -> None:
        """Run the commands of a console block, each until it prints what is written below it."""
        for part in text.removeprefix("$ ").split("\n$ "):
            command, *expected = part.strip("\n").split("\n")
            if not expected:
                self.do(command)
            for line in expected:
                self.wait_for(command, line)

    def wait_for(self, command: str, line: str) -> None:
        """Run a command until it prints this line, in which … stands for any text."""
        said: list[str] = []

        def printed() -> bool:
            said[:] = self.run(command)[1]
            words = line.strip()
            return occurs(words, said) if " " in words else words in map(str.strip, said)

        try:
            wait_until(printed, PATIENCE, line)
        except AssertionError as error:
            shown = "\n".join(said)
            raise AssertionError(
                f"{command} never printed\n{line}\nbut at last\n{shown}"
            ) from error
