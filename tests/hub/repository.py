"""What a Hub holds: repositories of files, by branch and commit."""

import hashlib
import json
from dataclasses import dataclass, field


class HubError(Exception):
    """An answer that is an error: its status, the Hub's code for it, and what to say."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Blob:
    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:
        """What the Hub compares files by, and gives as ETag: SHA-256 of large files, git's hash of others."""
        return hashlib.sha256(self.content).hexdigest() if self.is_lfs else self.git_oid

    @property
    def git_oid(self) -> str:
        content = self.content
        if self.is_lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {len(content)}\n"
            content = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    is_private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, Blob], summary: str) -> str:
        """All files at once: the branch moves when everything is there, or not at all."""
        listing = [self.branches.get(branch), summary, sorted((path, blob.oid) for path, blob in files.items())]
        sha = hashlib.sha1(json.dumps(listing).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.log.append(summary)
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha
