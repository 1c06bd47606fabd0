"""Tables, indexes and CHECKs; the schema's version.

Ids are AUTOINCREMENT: a re-used id would be a hole in the fence that tokens make. Times are integer
milliseconds, money integer nano-dollars; payloads, results and errors are TEXT that holds
ASCII-escaped JSON, so that NUL and lone surrogates survive any database.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SCHEMA_VERSION = 1
# In the place of the version: the file was empty, and is being removed.
REMOVED = "removed"

# Written into the header of a SQLite file, so that a foreign file is told from an empty queue ("bchq").
APPLICATION_ID = 0x62636871

metadata = MetaData()

# BIGINT keys would not alias SQLite's rowid: AUTOINCREMENT needs INTEGER there.
_Id = BigInteger().with_variant(Integer, "sqlite")

LIVE_STATES = "state IN ('pending','inflight')"
CLAIMABLE = text(f"{LIVE_STATES} AND leader_id IS NULL")
FAILED = text("state = 'failed'")
FINISHED = text("finished_at IS NOT NULL")
ENDED = text("state IN ('done','failed')")
FOLLOWING = text("leader_id IS NOT NULL")

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("worker", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("call_timeout_ms", BigInteger, nullable=False),
    Column("budget", BigInteger),
    Column("allow_unknown_cost", Boolean, nullable=False),
    Column("allow_truncated", Boolean, nullable=False),
    Column("keep_response", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("enqueue_until", BigInteger, nullable=False),
    Column("sealed_at", BigInteger),
    Column("source", Text),
    # Whether it holds just what an input holds: `run` and `prompt_map` made it, and may start its next generation.
    Column("synchronised", Boolean, nullable=False),
    CheckConstraint("state IN ('open','paused','cancelled','purging')", name="batch_state"),
    CheckConstraint("max_attempts >= 1", name="batch_max_attempts"),
    CheckConstraint("call_timeout_ms > 0", name="batch_call_timeout"),
    CheckConstraint("budget >= 0", name="batch_budget"),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("batch_id", BigInteger, ForeignKey("batches.id"), nullable=False),
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
    sqlite_autoincrement=True,
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
# `losses` is there to be looked at without the row: suspects are passed over.
Index(
    "job_claimable",
    jobs.c.batch_id,
    jobs.c.state,
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
    Column("job_id", BigInteger, ForeignKey("jobs.id"), nullable=False),
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
    CheckConstraint(
        "outcome IN ('succeeded','failed','retry','throttled','halted','released','lost','cancelled')",
        name="attempt_outcome",
    ),
    sqlite_with_rowid=False,
)

# The columns of a lane are the fields of pacing.LaneState.
lanes = Table(
    "lanes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("worker", Text, nullable=False),
    Column("base_url", Text, nullable=False),
    Column("model", Text, nullable=False),
    # What an operator configured, and what its buckets hold.
    Column("rpm", Float),
    Column("tpm", Float),
    Column("max_inflight", Integer),
    Column("burst", Float),
    Column("requests_left", Float, nullable=False),
    Column("tokens_left", Float, nullable=False),
    Column("tokens_mean", Float),
    Column("refilled_at", BigInteger, nullable=False),
    # What the provider's 429s taught: rates are requests per second.
    Column("learned_rate", Float),
    Column("rate_at_last_429", Float),
    Column("rate_before", Float, nullable=False),
    Column("rate_proven", Float, nullable=False),
    Column("learned_left", Float, nullable=False),
    Column("learned_burst", Float, nullable=False),
    Column("opening", Float, nullable=False),
    Column("saturated", Boolean, nullable=False),
    Column("sustained", Integer, nullable=False),
    Column("resumed_at", BigInteger, nullable=False),
    Column("started", Integer, nullable=False),
    Column("rejected", Integer, nullable=False),
    Column("accepted", Integer, nullable=False),
    Column("vain_pauses", Integer, nullable=False),
    Column("cut_at", BigInteger),
    # What keeps it now. `ready_at` is when a claim may succeed at the earliest.
    Column("paused_until", BigInteger),
    Column("halted_at", BigInteger),
    Column("probe_at", BigInteger),
    Column("vain_probes", Integer, nullable=False),
    Column("proved_at", BigInteger),
    Column("reason", Text),
    Column("ready_at", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    CheckConstraint("rpm > 0 AND tpm > 0 AND max_inflight > 0 AND burst >= 1", name="lane_limits"),
)

# Signed deltas per batch and writer: only their sum means anything. `runner` is '' for producers,
# operators and the folded rows of runners that left.
tallies = Table(
    "tallies",
    metadata,
    Column("batch_id", BigInteger, ForeignKey("batches.id"), nullable=False),
    Column("runner", Text, nullable=False),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in (
            "pending",
            "inflight",
            "done",
            "failed",
            "cancelled",
            "attempts",
            "losses",
            "late",
            "throttles",
            "input_tokens",
            "output_tokens",
            "cached_tokens",
            "reasoning_tokens",
            "cost",
            "estimated",
            "priced",
            "unpriced",
        )
    ),
    PrimaryKeyConstraint("batch_id", "runner"),
    sqlite_with_rowid=False,
)

runners = Table(
    "runners",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    # Where the pid means something: the boot and the pid namespace; NULL where that can't be told.
    Column("pid_space", Text),
    Column("concurrency", Integer, nullable=False),
    # What an operator asked for since; the runner takes it over with its next beat.
    Column("wanted_concurrency", Integer),
    Column("in_flight", Integer, nullable=False),
    Column("serves", Text, nullable=False),
    # JSON: the base URL of each endpoint that it knows.
    Column("endpoints", Text, nullable=False),
    # JSON: the ids of the batches that it was started for; NULL where it serves any.
    Column("batch_ids", Text),
    Column("lease_ms", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("stopped_at", BigInteger),
)
