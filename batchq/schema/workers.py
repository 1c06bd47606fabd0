"""Who works, and what limits them: lanes and runners."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Float, Integer, Table, Text

from batchq.schema.base import FEW_HOT_ROWS, metadata

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
    postgresql_with=FEW_HOT_ROWS,
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
    # Which batchq it is; NULL where that can't be told.
    Column("version", Text),
    postgresql_with=FEW_HOT_ROWS,
)
