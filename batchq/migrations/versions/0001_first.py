"""Version 1: the tables as they were when versions began. What is written here never changes again."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_SPELT = {
    "sqlite": {"id": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT", "without_rowid": "WITHOUT ROWID"},
    "postgresql": {"id": "BIGSERIAL NOT NULL PRIMARY KEY", "without_rowid": ""},
}
_APPLICATION_ID = 0x62636871

_TABLES = (
    """
    CREATE TABLE batches (
        id {id},
        name TEXT NOT NULL,
        worker TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        settings TEXT NOT NULL,
        priority INTEGER NOT NULL,
        max_attempts INTEGER NOT NULL,
        call_timeout_ms BIGINT NOT NULL,
        budget BIGINT,
        allow_unknown_cost BOOLEAN NOT NULL,
        allow_truncated BOOLEAN NOT NULL,
        keep_response BOOLEAN NOT NULL,
        state TEXT NOT NULL,
        size BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        enqueue_until BIGINT NOT NULL,
        sealed_at BIGINT,
        source TEXT,
        synchronised BOOLEAN NOT NULL,
        CONSTRAINT batch_state CHECK (state IN ('open','paused','cancelled','purging')),
        CONSTRAINT batch_max_attempts CHECK (max_attempts >= 1),
        CONSTRAINT batch_call_timeout CHECK (call_timeout_ms > 0),
        CONSTRAINT batch_budget CHECK (budget >= 0),
        UNIQUE (name)
    )
    """,
    """
    CREATE TABLE lanes (
        name TEXT NOT NULL,
        worker TEXT NOT NULL,
        base_url TEXT NOT NULL,
        model TEXT NOT NULL,
        rpm FLOAT,
        tpm FLOAT,
        max_inflight INTEGER,
        burst FLOAT,
        requests_left FLOAT NOT NULL,
        tokens_left FLOAT NOT NULL,
        tokens_mean FLOAT,
        refilled_at BIGINT NOT NULL,
        learned_rate FLOAT,
        rate_at_last_429 FLOAT,
        rate_before FLOAT NOT NULL,
        rate_proven FLOAT NOT NULL,
        learned_left FLOAT NOT NULL,
        learned_burst FLOAT NOT NULL,
        opening FLOAT NOT NULL,
        saturated BOOLEAN NOT NULL,
        sustained INTEGER NOT NULL,
        resumed_at BIGINT NOT NULL,
        started INTEGER NOT NULL,
        rejected INTEGER NOT NULL,
        accepted INTEGER NOT NULL,
        vain_pauses INTEGER NOT NULL,
        cut_at BIGINT,
        paused_until BIGINT,
        halted_at BIGINT,
        probe_at BIGINT,
        vain_probes INTEGER NOT NULL,
        proved_at BIGINT,
        reason TEXT,
        ready_at BIGINT NOT NULL,
        epoch BIGINT NOT NULL,
        PRIMARY KEY (name),
        CONSTRAINT lane_limits CHECK (rpm > 0 AND tpm > 0 AND max_inflight > 0 AND burst >= 1)
    )
    """,
    """
    CREATE TABLE meta (
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (name)
    )
    """,
    """
    CREATE TABLE runners (
        id TEXT NOT NULL,
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        pid_space TEXT,
        concurrency INTEGER NOT NULL,
        wanted_concurrency INTEGER,
        in_flight INTEGER NOT NULL,
        serves TEXT NOT NULL,
        endpoints TEXT NOT NULL,
        batch_ids TEXT,
        lease_ms BIGINT NOT NULL,
        started_at BIGINT NOT NULL,
        seen_at BIGINT NOT NULL,
        stopped_at BIGINT,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE jobs (
        id {id},
        batch_id BIGINT NOT NULL,
        position BIGINT NOT NULL,
        custom_id TEXT,
        key TEXT NOT NULL,
        payload TEXT NOT NULL,
        state TEXT NOT NULL,
        claimable_at BIGINT NOT NULL,
        token BIGINT DEFAULT 0 NOT NULL,
        attempts INTEGER DEFAULT 0 NOT NULL,
        losses INTEGER DEFAULT 0 NOT NULL,
        throttles INTEGER DEFAULT 0 NOT NULL,
        strikes INTEGER DEFAULT 0 NOT NULL,
        strike_class TEXT,
        halts INTEGER DEFAULT 0 NOT NULL,
        halted_at BIGINT,
        claimed_by TEXT,
        claimed_at BIGINT,
        lane TEXT,
        result TEXT,
        response TEXT,
        error TEXT,
        error_class TEXT,
        status INTEGER,
        finish_reason TEXT,
        meta TEXT,
        input_tokens BIGINT,
        output_tokens BIGINT,
        cached_tokens BIGINT,
        reasoning_tokens BIGINT,
        cost BIGINT,
        cost_source TEXT,
        created_at BIGINT NOT NULL,
        finished_at BIGINT,
        leader_id BIGINT,
        followers INTEGER DEFAULT 0 NOT NULL,
        CONSTRAINT job_state CHECK (state IN ('pending','inflight','done','failed','cancelled')),
        CONSTRAINT job_final CHECK ((state IN ('done','failed','cancelled')) = (finished_at IS NOT NULL)),
        CONSTRAINT job_done_has_result CHECK (state <> 'done' OR result IS NOT NULL),
        CONSTRAINT job_inflight_has_runner CHECK (state <> 'inflight' OR claimed_by IS NOT NULL),
        CONSTRAINT job_counts CHECK (attempts >= 0 AND token >= 0),
        CONSTRAINT job_position UNIQUE (batch_id, position),
        FOREIGN KEY (batch_id) REFERENCES batches (id)
    )
    """,
    """
    CREATE TABLE tallies (
        batch_id BIGINT NOT NULL,
        runner TEXT NOT NULL,
        pending BIGINT DEFAULT 0 NOT NULL,
        inflight BIGINT DEFAULT 0 NOT NULL,
        done BIGINT DEFAULT 0 NOT NULL,
        failed BIGINT DEFAULT 0 NOT NULL,
        cancelled BIGINT DEFAULT 0 NOT NULL,
        attempts BIGINT DEFAULT 0 NOT NULL,
        losses BIGINT DEFAULT 0 NOT NULL,
        late BIGINT DEFAULT 0 NOT NULL,
        throttles BIGINT DEFAULT 0 NOT NULL,
        input_tokens BIGINT DEFAULT 0 NOT NULL,
        output_tokens BIGINT DEFAULT 0 NOT NULL,
        cached_tokens BIGINT DEFAULT 0 NOT NULL,
        reasoning_tokens BIGINT DEFAULT 0 NOT NULL,
        cost BIGINT DEFAULT 0 NOT NULL,
        estimated BIGINT DEFAULT 0 NOT NULL,
        priced BIGINT DEFAULT 0 NOT NULL,
        unpriced BIGINT DEFAULT 0 NOT NULL,
        PRIMARY KEY (batch_id, runner),
        FOREIGN KEY (batch_id) REFERENCES batches (id)
    ) {without_rowid}
    """,
    """
    CREATE TABLE attempts (
        job_id BIGINT NOT NULL,
        token BIGINT NOT NULL,
        number INTEGER NOT NULL,
        runner TEXT,
        started_at BIGINT,
        ended_at BIGINT NOT NULL,
        duration_ms BIGINT,
        outcome TEXT NOT NULL,
        charged BOOLEAN NOT NULL,
        error TEXT,
        error_class TEXT,
        status INTEGER,
        input_tokens BIGINT,
        output_tokens BIGINT,
        cached_tokens BIGINT,
        reasoning_tokens BIGINT,
        cost BIGINT,
        cost_source TEXT,
        late BOOLEAN NOT NULL,
        late_result TEXT,
        PRIMARY KEY (job_id, token),
        CONSTRAINT attempt_outcome CHECK (
            outcome IN ('succeeded','failed','retry','throttled','halted','released','lost','cancelled')
        ),
        FOREIGN KEY (job_id) REFERENCES jobs (id)
    ) {without_rowid}
    """,
)

_INDEXES = (
    """
    CREATE INDEX job_claimable ON jobs (batch_id, state, claimable_at, id, losses)
        WHERE state IN ('pending','inflight') AND leader_id IS NULL
    """,
    """
    CREATE UNIQUE INDEX job_custom_id ON jobs (batch_id, custom_id) WHERE custom_id IS NOT NULL
    """,
    """
    CREATE INDEX job_failed ON jobs (batch_id, state, error_class, position, followers) WHERE state = 'failed'
    """,
    """
    CREATE INDEX job_finished ON jobs (batch_id, finished_at, id) WHERE finished_at IS NOT NULL
    """,
    """
    CREATE INDEX job_followers ON jobs (leader_id) WHERE leader_id IS NOT NULL
    """,
)


def upgrade() -> None:
    """Make the tables."""
    dialect = op.get_bind().dialect.name
    for statement in (*_TABLES, *_INDEXES):
        op.execute(statement.format(**_SPELT[dialect]))
    op.execute("INSERT INTO meta (name, value) VALUES ('schema_version', '1')")
    if dialect == "sqlite":
        op.execute(f"PRAGMA application_id={_APPLICATION_ID}")
