"""The queue's own facts, its batches, and their tallies."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

from batchq.schema.base import FEW_HOT_ROWS, Id, metadata

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Id, primary_key=True),
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
    postgresql_with=FEW_HOT_ROWS,
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
    postgresql_with=FEW_HOT_ROWS,
)
