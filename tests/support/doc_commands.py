"""The shell commands of the documentation: README, pages, and the heads of config files."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "serve_configs").glob("*.yaml"))
    if path.name not in ("CHANGELOG.md", "decisions.md")  # they tell of former times
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "bash", "console")
PROGRAMS = (
    *("medusa-dist", "make", "ray", "serve", "curl", "pip", "python3", "python", "export", "docker", "ssh", "git"),
    *("cluster/start_head.sh", "kubectl"),
)
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*$")


@dataclass(frozen=True)
class DocCommand:
    """text: as it stands on the page, lines that end in a backslash joined, without a comment."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(re.sub(r"<[^>]*>", "X", self.text))

    @property
    def program(self) -> str:
        return next(word for word in self.words if not ASSIGNMENT.match(word))

    @property
    def ours(self) -> list[str] | None:
        """The arguments of medusa-dist, also where another program starts it."""
        return self.words[self.words.index("medusa-dist") + 1 :] if "medusa-dist" in self.words else None


def whole_commands(lines: list[str]) -> list[str]:
    """Lines joined where the shell would read on: after a backslash, or inside quotes."""
    whole, begun = [], ""
    for line in lines:
        begun += line.removesuffix("\\")
        try:
            shlex.split(begun)
        except ValueError:
            begun += "\n"
            continue
        if not line.endswith("\\"):
            whole.append(begun)
            begun = ""
    return whole


def commands_of(path: Path) -> list[DocCommand]:
    """All commands in code blocks, in code of one line with arguments, and in the comments of a config."""
    text = path.read_text()
    if path.suffix == ".yaml":
        lines = re.findall(r"^#   (\S.*)$", text, re.MULTILINE)
    else:
        fenced = [block for language, block in FENCE.findall(text) if language in SHELL]
        rest = FENCE.sub("", text)
        blocks = [*fenced, *re.findall(r"(?:^    .*\n)+", rest, re.MULTILINE)]
        lines = [line for block in blocks for line in whole_commands(block.splitlines())]
        lines += re.findall(r"`([^`\n]+ [^`\n]+)`", rest)
    found = []
    for line in lines:
        for part in re.sub(r"\s#\s.*$", "", line.strip()).split(" && "):
            words = part.split()
            while words and ASSIGNMENT.match(words[0]):
                words = words[1:]
            is_prose = len(words) > 1 and words[1] in ("is", "has", "and", "or")
            if words and words[0] in PROGRAMS and not is_prose:
                found.append(DocCommand(str(path.relative_to(ROOT)), part.strip()))
    return found


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))
