"""A password in the database's URL is shown by no command, in no hint and in no log."""

from __future__ import annotations

from processes import bench

PASSWORD = "s3cret-w0rd"
COMMANDS = [
    ["enqueue", "prompts.jsonl", "--batch", "demo", "--worker", "echo"],
    ["status"],
    ["pause", "demo"],
    ["status", "--json"],
    ["resume", "demo"],
    ["worker", "--worker", "echo", "--until-empty"],
    ["collect", "demo", "-o", "answers.jsonl"],
    ["show", "demo", "1"],
    ["budget", "demo", "1"],
    ["limit", "some/model", "--worker", "echo", "--rpm", "5"],
    ["concurrency", "4"],
    ["show", "nonsense", "1"],
    ["cancel", "demo"],
    ["retry", "demo"],
    ["run", "prompts.jsonl", "--worker", "echo", "-o", "more.jsonl"],
    ["db", "check"],
    ["db", "upgrade"],
    ["db", "copy", "{db}", "copy.db"],
    ["status"],
    ["enqueue", "prompts.jsonl", "--batch", "late", "--worker", "echo"],
    ["db", "copy", "{db}", "copy.db", "--undo", "--force"],
    ["purge", "demo", "--yes"],
]


def test_no_command_shows_the_password_of_its_database(postgres_url, tmp_path):
    url = postgres_url.replace("batchq@", f"batchq:{PASSWORD}@", 1)
    with bench(tmp_path) as place:
        place.write_prompts(3)
        for command in COMMANDS:
            arguments = [url if word == "{db}" else word for word in command]
            named = [] if command[:2] == ["db", "copy"] else ["--db", url]
            done = place.run(*arguments, *named)
            said = done.stdout + done.stderr
            assert PASSWORD not in said, f"{command} says:\n{said}"
            assert "Traceback" not in said
            assert done.returncode in {0, 1, 2}, f"{command} ended with {done.returncode}:\n{said}"
