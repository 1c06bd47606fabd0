"""Jobs, the indexes that find them, and the log of their attempts."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from batchq.schema.base import CLEANED_SOON, MANY_ROWS, Id, metadata

LIVE_STATES = "state IN ('pending','inflight')"
CLAIMABLE = text(f"{LIVE_STATES} AND leader_id IS NULL")
FAILED = text("state = 'failed'")
FINISHED = text("finished_at IS NOT NULL")
ENDED = text("state IN ('done','failed')")
FOLLOWING = text("leader_id IS NOT NULL")

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("batch_id", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("custom_id", Text),
    Column("key", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", Text, nullable=False),
    # While pending: not before. While inflight: leased until.
    Column("claimable_at", BigInteger, nullable=False),
    Column("token", BigInteger, nullable=False, server_default=text("0")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("losses", Integer, nullable=False, server_default=text("0")),
    Column("throttles", Integer, nullable=False, server_default=text("0")),
    # How often in a row it ended charged with this class of error, and how often it halted its lane, since when.
    Column("strikes", Integer, nullable=False, server_default=text("0")),
    Column("strike_class", Text),
    Column("halts", Integer, nullable=False, server_default=text("0")),
    Column("halted_at", BigInteger),
    Column("claimed_by", Text),
    Column("claimed_at", BigInteger),
    # The lane of its last claim: which server a process calls is its own affair.
    Column("lane", Text),
    Column("result", Text),
    Column("response", Text),
    Column("error", Text),
    Column("error_class", Text),
    # The HTTP status of the answer that failed it, where there was one.
    Column("status", Integer),
    Column("finish_reason", Text),
    Column("meta", Text),
    # What was spent on it, all attempts together; late answers are in the log only, since they change no job.
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cached_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("cost", BigInteger),
    Column("cost_source", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("leader_id", BigInteger),
    Column("followers", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("state IN ('pending','inflight','done','failed','cancelled')", name="job_state"),
    CheckConstraint("(state IN ('done','failed','cancelled')) = (finished_at IS NOT NULL)", name="job_final"),
    CheckConstraint("state <> 'done' OR result IS NOT NULL", name="job_done_has_result"),
    CheckConstraint("state <> 'inflight' OR claimed_by IS NOT NULL", name="job_inflight_has_runner"),
    CheckConstraint("attempts >= 0 AND token >= 0", name="job_counts"),
    UniqueConstraint("batch_id", "position", name="job_position"),
    # PostgreSQL would run a trigger for each row, and lock the batch.
    ForeignKeyConstraint(["batch_id"], ["batches.id"]).ddl_if(dialect="sqlite"),
    sqlite_autoincrement=True,
    postgresql_with=MANY_ROWS,
)

Index(
    "job_custom_id",
    jobs.c.batch_id,
    jobs.c.custom_id,
    unique=True,
    sqlite_where=jobs.c.custom_id.is_not(None),
    postgresql_where=jobs.c.custom_id.is_not(None),
)

# The one index that finding work reads: the walk of live batches, due and expired rows, "finished?".
# `losses` is there to be looked at without the row: suspects are passed over. What waits stands before what is in
# flight: the walk then meets few rows that were settled a moment ago, which PostgreSQL still has to look at.
Index(
    "job_claimable",
    jobs.c.batch_id,
    jobs.c.state.desc(),
    jobs.c.claimable_at,
    jobs.c.id,
    jobs.c.losses,
    sqlite_where=CLAIMABLE,
    postgresql_where=CLAIMABLE,
)

# Failures by class, without a look at all that went well. `state` spares SQLite the look at the rows.
Index(
    "job_failed",
    jobs.c.batch_id,
    jobs.c.state,
    jobs.c.error_class,
    jobs.c.position,
    jobs.c.followers,
    sqlite_where=FAILED,
    postgresql_where=FAILED,
)

# What ended, in the order in which it did: the clock never runs back far enough to matter to who reads it.
Index(
    "job_finished",
    jobs.c.batch_id,
    jobs.c.finished_at,
    jobs.c.id,
    sqlite_where=FINISHED,
    postgresql_where=FINISHED,
)

# Answers by request, of all batches. Made when somebody first reuses one: keys come in no order, and with a million
# of them this index costs five times the bytes of all else that a run writes.
ENDED_KEY = f"CREATE INDEX IF NOT EXISTS job_ended_key ON jobs (key) WHERE {ENDED.text}"

# Who follows whom: duplicates that are read through their leader.
Index("job_followers", jobs.c.leader_id, sqlite_where=FOLLOWING, postgresql_where=FOLLOWING)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", BigInteger, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("number", Integer, nullable=False),
    Column("runner", Text),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger, nullable=False),
    Column("duration_ms", BigInteger),
    Column("outcome", Text, nullable=False),
    Column("charged", Boolean, nullable=False),
    Column("error", Text),
    Column("error_class", Text),
    Column("status", Integer),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cached_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("cost", BigInteger),
    Column("cost_source", Text),
    Column("late", Boolean, nullable=False),
    Column("late_result", Text),
    PrimaryKeyConstraint("job_id", "token"),
    ForeignKeyConstraint(["job_id"], ["jobs.id"]).ddl_if(dialect="sqlite"),
    CheckConstraint(
        "outcome IN ('succeeded','failed','retry','throttled','halted','released','lost','cancelled')",
        name="attempt_outcome",
    ),
    sqlite_with_rowid=False,
    postgresql_with=CLEANED_SOON,
)
