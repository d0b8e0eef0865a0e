-- What a queue in PostgreSQL needs besides Procrastinate's own schema.
--
-- It is installed into the schema that is first in search_path, after Procrastinate's. Everything
-- can be run again: a newer version of the package replaces the functions of an older one. Programs
-- of both versions may use the queue at that time, so a function with other arguments needs another
-- name.
--
-- A job is a row of dbbasic_jobs and a row of procrastinate_jobs; each change of both is one
-- transaction. Our row is always locked before Procrastinate's. Each function that programs call
-- sets search_path, because it may be called from any connection, also one of the application.

CREATE TABLE IF NOT EXISTS dbbasic_jobs (
    number bigint GENERATED ALWAYS AS IDENTITY,      -- the order of adding
    id text COLLATE "C" PRIMARY KEY,
    type text COLLATE "C" NOT NULL,
    payload text NOT NULL,                           -- JSON may have \u0000, which jsonb refuses
    status text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    run_at bigint NOT NULL,
    attempts integer NOT NULL,
    error text NOT NULL,
    result text NOT NULL,
    version bigint NOT NULL,                         -- a random start, and one more per change
    unique_key text COLLATE "C" NOT NULL,
    pending_number bigint NOT NULL,                  -- when it became pending, for the mark
    procrastinate_id bigint NOT NULL,
    worker bigint,                                   -- which worker has claimed it last
    claim_number bigint NOT NULL DEFAULT 0           -- the order of claiming
);
CREATE SEQUENCE IF NOT EXISTS dbbasic_pending_number;
CREATE SEQUENCE IF NOT EXISTS dbbasic_claim_number;

CREATE UNIQUE INDEX IF NOT EXISTS dbbasic_jobs_number ON dbbasic_jobs (number);
-- By type first: neither jobs of other types nor those that are due later are looked at.
CREATE INDEX IF NOT EXISTS dbbasic_jobs_pending ON dbbasic_jobs (type, run_at, number)
    WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS dbbasic_jobs_unique_key ON dbbasic_jobs (unique_key)
    WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS dbbasic_jobs_retries ON dbbasic_jobs (run_at)
    WHERE status = 'pending' AND attempts > 0;
CREATE INDEX IF NOT EXISTS dbbasic_jobs_created ON dbbasic_jobs (created_at)
    WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS dbbasic_jobs_processing ON dbbasic_jobs (type)
    WHERE status = 'processing';
CREATE INDEX IF NOT EXISTS dbbasic_jobs_failed ON dbbasic_jobs (number) WHERE status = 'failed';

CREATE TABLE IF NOT EXISTS dbbasic_values (
    name text PRIMARY KEY,
    value bytea NOT NULL,
    token bigint NOT NULL                            -- which call has set it
);

CREATE TABLE IF NOT EXISTS dbbasic_workers (
    id bigint PRIMARY KEY,                           -- as in procrastinate_workers
    name text NOT NULL,
    parallel integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    listed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS dbbasic_history (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id text COLLATE "C" NOT NULL,
    ended_at double precision NOT NULL,
    line text NOT NULL
);
CREATE INDEX IF NOT EXISTS dbbasic_history_job ON dbbasic_history (job_id);

CREATE TABLE IF NOT EXISTS dbbasic_output (
    job_id text COLLATE "C" NOT NULL REFERENCES dbbasic_jobs (id) ON DELETE CASCADE,
    attempt integer NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    line bytea NOT NULL,                             -- what is printed need not be UTF-8
    PRIMARY KEY (job_id, attempt)
);

-- Unlogged: it is written often, and a job whose server crashed has no progress any more.
CREATE UNLOGGED TABLE IF NOT EXISTS dbbasic_progress (
    job_id text COLLATE "C" PRIMARY KEY REFERENCES dbbasic_jobs (id) ON DELETE CASCADE,
    line text NOT NULL
);

-- When a worker's row is deleted, PostgreSQL looks for its jobs. Procrastinate's own index can't
-- find them, so that each end of a pass would read the whole table.
CREATE INDEX IF NOT EXISTS dbbasic_worker_id ON procrastinate_jobs (worker_id)
    WHERE worker_id IS NOT NULL;

-- For the same reason a finished job forgets its worker: otherwise the end of a pass would rewrite
-- the rows of all jobs that it has run.
CREATE OR REPLACE FUNCTION dbbasic_forget_worker() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.worker_id := NULL;
    RETURN NEW;
END;
$$;
DROP TRIGGER IF EXISTS dbbasic_forget_worker ON procrastinate_jobs;
CREATE TRIGGER dbbasic_forget_worker BEFORE UPDATE OF status ON procrastinate_jobs
    FOR EACH ROW WHEN (OLD.status = 'doing' AND NEW.status <> 'doing')
    EXECUTE PROCEDURE dbbasic_forget_worker();

-- Procrastinate's trigger reports each job within the transaction that adds it. PostgreSQL commits
-- such transactions one after the other, each with a sync of the disk of its own; and a worker that
-- listens gets two messages per job. Our calls report their jobs once, after the commit.
DROP TRIGGER IF EXISTS procrastinate_jobs_notify_queue_job_inserted_v1 ON procrastinate_jobs;

-- What Procrastinate's own tools change or delete is changed in our table, too. While our functions
-- change Procrastinate's rows, dbbasic_queue.own is 'on', so that this doesn't happen to them. They
-- call dbbasic_own for that: only a superuser can make a function with SET dbbasic_queue.own.
CREATE OR REPLACE FUNCTION dbbasic_own(_on_or_off text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('dbbasic_queue.own', _on_or_off, true);
END;
$$;

CREATE OR REPLACE FUNCTION dbbasic_mirror() RETURNS trigger LANGUAGE plpgsql
    SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM dbbasic_jobs WHERE id = OLD.args ->> 'id' AND procrastinate_id = OLD.id;
        RETURN NULL;
    END IF;
    UPDATE dbbasic_jobs SET
        status = CASE NEW.status
            WHEN 'todo' THEN 'pending' WHEN 'doing' THEN 'processing'
            WHEN 'succeeded' THEN 'completed' WHEN 'failed' THEN 'failed' ELSE 'cancelled'
        END,
        run_at = CASE NEW.status
            WHEN 'todo' THEN ceil(extract(epoch FROM coalesce(NEW.scheduled_at, now())))
            ELSE run_at
        END,
        attempts = CASE NEW.status WHEN 'doing' THEN attempts + 1 ELSE attempts END,
        error = 'Now ' || NEW.status || ', by a tool of Procrastinate',
        version = version + 1,
        pending_number = nextval('dbbasic_pending_number'),
        worker = NEW.worker_id
    WHERE id = NEW.args ->> 'id' AND procrastinate_id = NEW.id;
    RETURN NULL;
END;
$$;
DROP TRIGGER IF EXISTS dbbasic_mirror_status ON procrastinate_jobs;
CREATE TRIGGER dbbasic_mirror_status AFTER UPDATE OF status ON procrastinate_jobs
    FOR EACH ROW WHEN (
        OLD.status <> NEW.status AND current_setting('dbbasic_queue.own', true) IS DISTINCT FROM 'on'
    ) EXECUTE PROCEDURE dbbasic_mirror();
DROP TRIGGER IF EXISTS dbbasic_mirror_delete ON procrastinate_jobs;
CREATE TRIGGER dbbasic_mirror_delete AFTER DELETE ON procrastinate_jobs
    FOR EACH ROW WHEN (current_setting('dbbasic_queue.own', true) IS DISTINCT FROM 'on')
    EXECUTE PROCEDURE dbbasic_mirror();


-- -- both rows --

CREATE OR REPLACE FUNCTION dbbasic_defer(_ids text[], _types text[], _run_at bigint[])
    RETURNS bigint[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN procrastinate_defer_jobs_v1(ARRAY(
        SELECT ROW(
            type, type, 0, NULL, NULL, jsonb_build_object('id', id), to_timestamp(run_at)
        )::procrastinate_job_to_defer_v1
        FROM unnest(_ids, _types, _run_at) WITH ORDINALITY AS new (id, type, run_at, place)
        ORDER BY place
    ));
END;
$$;

-- Give Procrastinate's row the new status of ours; return its id.
CREATE OR REPLACE FUNCTION dbbasic_move(
    _procrastinate_id bigint, _id text, _type text, _from text, _to text, _run_at bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _due timestamptz := to_timestamp(_run_at);
BEGIN
    IF _from IN ('pending', 'processing') AND _to IN ('completed', 'failed') THEN
        PERFORM procrastinate_finish_job_v1(
            _procrastinate_id,
            (CASE _to WHEN 'completed' THEN 'succeeded' ELSE 'failed' END)::procrastinate_job_status,
            false
        );
    ELSIF _from = 'processing' AND _to = 'pending' THEN
        -- Procrastinate makes a job fail if it is retried after a request to abort it.
        UPDATE procrastinate_jobs SET abort_requested = false
            WHERE id = _procrastinate_id AND abort_requested;
        PERFORM procrastinate_retry_job_v2(_procrastinate_id, _due, NULL, NULL, NULL);
    ELSIF _from = 'processing' AND _to = 'processing' THEN
        PERFORM procrastinate_cancel_job_v1(_procrastinate_id, true, false);
    ELSIF _from = 'processing' AND _to = 'cancelled' THEN
        PERFORM procrastinate_finish_job_v1(_procrastinate_id, 'aborted', false);
    ELSIF _from = 'pending' AND _to = 'pending' THEN
        UPDATE procrastinate_jobs SET scheduled_at = _due
            WHERE id = _procrastinate_id AND scheduled_at <> _due;
    ELSIF _from = 'pending' AND _to = 'cancelled' THEN
        PERFORM procrastinate_cancel_job_v1(_procrastinate_id, false, false);
    ELSIF _from = 'failed' AND _to = 'pending' THEN
        PERFORM procrastinate_retry_job_v2(_procrastinate_id, _due, NULL, NULL, NULL);
    ELSIF _to = 'pending' THEN
        -- Procrastinate has no way back from its other final statuses.
        DELETE FROM procrastinate_jobs WHERE id = _procrastinate_id;
        RETURN (dbbasic_defer(ARRAY[_id], ARRAY[_type], ARRAY[_run_at]))[1];
    ELSIF _from = 'cancelled' AND _to = 'cancelled' THEN
        NULL;  -- only its error changes, when it is moved to another queue
    ELSE
        RAISE 'a % job can''t become %', _from, _to;
    END IF;
    RETURN _procrastinate_id;
END;
$$;


-- -- adding --

-- Return whether the queue was moved to another address, unless the caller uses it _anyway. If it
-- wasn't, it isn't before this transaction ends.
CREATE OR REPLACE FUNCTION dbbasic_is_moved(_anyway boolean) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF _anyway THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(current_schema() || ' moved', 0));
    RETURN EXISTS (SELECT FROM dbbasic_values WHERE name = 'moved' AND value <> '');
END;
$$;

-- Add jobs, all or none; return false if an id is taken and _own_id is set, and null if the queue
-- was moved. A repeated call has the same _token, and adds nothing.
CREATE OR REPLACE FUNCTION dbbasic_add(
    _ids text[], _types text[], _payloads text[], _statuses text[], _created_at bigint[],
    _run_at bigint[], _attempts integer[], _errors text[], _results text[], _keys text[],
    _token bigint, _own_id boolean, _anyway boolean
) RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    _job record;
BEGIN
    IF dbbasic_is_moved(_anyway) THEN
        RETURN NULL;
    END IF;
    -- The block is a savepoint: a taken id doesn't abort the application's transaction.
    BEGIN
        INSERT INTO dbbasic_jobs (
            id, type, payload, status, created_at, run_at, attempts, error, result, version,
            unique_key, pending_number, procrastinate_id
        )
        SELECT
            id, type, payload, status, created_at, run_at, attempts, error, result, _token, key,
            nextval('dbbasic_pending_number'), procrastinate_id
        FROM unnest(
            _ids, _types, _payloads, _statuses, _created_at, _run_at, _attempts, _errors, _results,
            _keys, dbbasic_defer(_ids, _types, _run_at)
        ) WITH ORDINALITY AS new (
            id, type, payload, status, created_at, run_at, attempts, error, result, key,
            procrastinate_id, place
        )
        ORDER BY place;
    EXCEPTION WHEN unique_violation THEN
        RETURN NOT _own_id OR EXISTS (
            SELECT FROM dbbasic_jobs
            WHERE id = ANY (_ids) AND version >= _token AND version < _token + 1000000
        );
    END;
    IF 'pending' <> ANY (_statuses) THEN
        PERFORM dbbasic_own('on');
        FOR _job IN
            SELECT * FROM dbbasic_jobs WHERE id = ANY (_ids) AND status <> 'pending' ORDER BY number
        LOOP
            PERFORM dbbasic_move(
                _job.procrastinate_id, _job.id, _job.type, 'pending', _job.status, _job.run_at
            );
        END LOOP;
        PERFORM dbbasic_own('off');
    END IF;
    RETURN true;
END;
$$;

-- Add a pending job unless a pending one has the same key; return the id of that one, or null. Return
-- an empty text if the queue was moved.
CREATE OR REPLACE FUNCTION dbbasic_add_unless_pending(
    _id text, _type text, _payload text, _created_at bigint, _run_at bigint, _key text,
    _token bigint, _anyway boolean
) RETURNS text LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    _found text;
BEGIN
    IF dbbasic_is_moved(_anyway) THEN
        RETURN '';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || ' unique ' || _key, 0));
    SELECT id INTO _found FROM dbbasic_jobs
        WHERE unique_key = _key AND status = 'pending' ORDER BY number LIMIT 1;
    IF _found IS NULL OR _found = _id THEN
        PERFORM dbbasic_add(
            ARRAY[_id], ARRAY[_type], ARRAY[_payload], ARRAY['pending'], ARRAY[_created_at],
            ARRAY[_run_at], ARRAY[0], ARRAY[''], ARRAY[''], ARRAY[_key], _token, false, true
        );
        RETURN NULL;
    END IF;
    RETURN _found;
END;
$$;

-- Set a named value, and add jobs, if it is still _before and no id is taken. Return null if jobs
-- are to be added, and the queue was moved.
CREATE OR REPLACE FUNCTION dbbasic_replace(
    _name text, _before bytea, _after bytea, _token bigint, _anyway boolean,
    _ids text[], _types text[], _payloads text[], _statuses text[], _created_at bigint[],
    _run_at bigint[], _attempts integer[], _errors text[], _results text[], _keys text[]
) RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    _now dbbasic_values;
BEGIN
    IF _name = 'moved' THEN  -- after the transactions that have found that it isn't
        PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || ' moved', 0));
    ELSIF cardinality(_ids) > 0 AND dbbasic_is_moved(_anyway) THEN
        RETURN NULL;
    END IF;
    INSERT INTO dbbasic_values VALUES (_name, '', 0) ON CONFLICT DO NOTHING;
    SELECT * INTO _now FROM dbbasic_values WHERE name = _name FOR UPDATE;
    IF _now.token = _token THEN
        RETURN true;
    ELSIF _now.value <> _before THEN
        RETURN false;
    ELSIF cardinality(_ids) > 0 AND NOT dbbasic_add(
        _ids, _types, _payloads, _statuses, _created_at, _run_at, _attempts, _errors, _results,
        _keys, _token, true, true
    ) THEN
        RETURN false;
    END IF;
    UPDATE dbbasic_values SET value = _after, token = _token WHERE name = _name;
    RETURN true;
END;
$$;


-- -- changing --

-- Make each change whose job has the version that was read; return which were made. A null status
-- means a new payload; if both are null, the job is removed. The ids are sorted, so that two calls
-- lock the same jobs in the same order.
CREATE OR REPLACE FUNCTION dbbasic_change(
    _ids text[], _versions bigint[], _payloads text[], _keys text[], _statuses text[],
    _created_at bigint[], _run_at bigint[], _attempts integer[], _errors text[], _results text[],
    _again boolean
) RETURNS boolean[] LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    _job dbbasic_jobs;
    _made boolean[] := '{}';
    _is_made boolean;
    _pending_number bigint;
    _procrastinate_id bigint;
BEGIN
    PERFORM dbbasic_own('on');
    FOR i IN 1 .. cardinality(_ids) LOOP
        SELECT * INTO _job FROM dbbasic_jobs WHERE id = _ids[i] FOR UPDATE;
        IF NOT FOUND THEN
            _is_made := _again AND _statuses[i] IS NULL AND _payloads[i] IS NULL;
        ELSIF _job.version <> _versions[i] THEN
            _is_made := _again AND _job.version = _versions[i] + 1 AND CASE
                WHEN _statuses[i] IS NOT NULL THEN
                    (_job.status, _job.created_at, _job.run_at, _job.attempts, _job.error, _job.result)
                    = (_statuses[i], _created_at[i], _run_at[i], _attempts[i], _errors[i], _results[i])
                ELSE _job.payload IS NOT DISTINCT FROM _payloads[i]
            END;
        ELSIF _statuses[i] IS NOT NULL THEN
            _is_made := true;
            _procrastinate_id := dbbasic_move(
                _job.procrastinate_id, _job.id, _job.type, _job.status, _statuses[i], _run_at[i]
            );
            -- A job that is returned isn't a later one: other passes may run it.
            IF _statuses[i] <> 'pending' OR _job.status = 'pending' OR (
                _job.status = 'processing' AND _job.run_at = _run_at[i]
                AND _job.attempts > _attempts[i]
            ) THEN
                _pending_number := _job.pending_number;
            ELSE
                _pending_number := nextval('dbbasic_pending_number');
            END IF;
            UPDATE dbbasic_jobs SET
                status = _statuses[i], created_at = _created_at[i], run_at = _run_at[i],
                attempts = _attempts[i], error = _errors[i], result = _results[i],
                version = version + 1, pending_number = _pending_number,
                procrastinate_id = _procrastinate_id
            WHERE id = _ids[i];
        ELSIF _payloads[i] IS NOT NULL THEN
            _is_made := true;
            UPDATE dbbasic_jobs
                SET payload = _payloads[i], unique_key = _keys[i], version = version + 1
                WHERE id = _ids[i];
        ELSE
            _is_made := true;
            DELETE FROM dbbasic_jobs WHERE id = _ids[i];
            DELETE FROM procrastinate_jobs WHERE id = _job.procrastinate_id;
        END IF;
        _made := _made || _is_made;
    END LOOP;
    PERFORM dbbasic_own('off');
    RETURN _made;
END;
$$;


-- -- workers --

CREATE OR REPLACE FUNCTION dbbasic_open_worker(_name text, _parallel integer)
    RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    _worker bigint;
BEGIN
    SELECT worker_id INTO _worker FROM procrastinate_register_worker_v1();
    INSERT INTO dbbasic_workers (id, name, parallel) VALUES (_worker, _name, _parallel);
    RETURN _worker;
END;
$$;

CREATE OR REPLACE FUNCTION dbbasic_beat(_worker bigint)
    RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM procrastinate_update_heartbeat_v1(_worker);
    RETURN EXISTS (SELECT FROM procrastinate_workers WHERE id = _worker);
END;
$$;

CREATE OR REPLACE FUNCTION dbbasic_close_worker(_worker bigint)
    RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM procrastinate_unregister_worker_v1(_worker);
    DELETE FROM dbbasic_workers w WHERE id = _worker AND NOT EXISTS (
        SELECT FROM dbbasic_jobs WHERE status = 'processing' AND worker = w.id
    );
END;
$$;

-- Remove the workers that count as dead, except those that still have jobs from our own table: it
-- knows which of these jobs may have been started.
CREATE OR REPLACE FUNCTION dbbasic_prune(_dead_seconds double precision)
    RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM procrastinate_prune_stalled_workers_v1(_dead_seconds);
    DELETE FROM dbbasic_workers w
        WHERE NOT EXISTS (SELECT FROM procrastinate_workers WHERE id = w.id)
        AND NOT EXISTS (SELECT FROM dbbasic_jobs WHERE status = 'processing' AND worker = w.id);
END;
$$;


-- -- claiming --

-- Claim up to _most jobs that are due at _now; return their ids.
--
-- Procrastinate's own function, procrastinate_fetch_job_v2, isn't called because it fetches one job,
-- for a commit each, asks the server's clock what is due, knows neither limits nor the mark, and
-- reads all jobs of other types and later times that come before. What it does to a job is the
-- same: FOR UPDATE SKIP LOCKED, then todo -> doing, with worker_id. We use none of its locks.
--
-- The settings leave only one plan, by the index dbbasic_jobs_pending. Without them, outdated
-- statistics, or those of another type, can make PostgreSQL read all pending jobs. They also make
-- each plan look so expensive that it would be compiled, for a second, on every connection.
--
-- _limited are types of which only _limits jobs may be processing, and _mine of them be claimed now.
CREATE OR REPLACE FUNCTION dbbasic_claim(
    _worker bigint, _types text[], _most integer, _now bigint, _mark bigint,
    _skip text[], _limited text[], _limits integer[], _mine integer[],
    _dead_seconds double precision, _most_attempts integer, _stop_error text, _anyway boolean
) RETURNS SETOF dbbasic_jobs LANGUAGE plpgsql SET search_path FROM CURRENT
    SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_sort = off SET enable_incremental_sort = off AS $$
DECLARE
    _rooms integer[] := array_fill(_most, ARRAY[cardinality(_types)]);
    _limited_type text;
    _limit integer;
    _mine_now integer;
    _ids text[];
    _number bigint;
BEGIN
    IF dbbasic_is_moved(_anyway) THEN
        RAISE 'the queue was moved' USING ERRCODE = 'DBQ01';
    END IF;
    -- The worker's row is locked before any job's, so that it can't be pruned in between.
    PERFORM FROM procrastinate_workers
        WHERE id = _worker AND last_heartbeat >= now() - make_interval(secs => _dead_seconds)
        FOR KEY SHARE;
    IF NOT FOUND OR cardinality(_types) = 0 OR _most < 1 THEN
        RETURN;
    END IF;
    FOR _limited_type, _limit, _mine_now IN
        SELECT * FROM unnest(_limited, _limits, _mine) AS l (type, most, mine) ORDER BY type
    LOOP
        -- Until the commit nobody else claims jobs of this type: the count stays right.
        PERFORM pg_advisory_xact_lock(
            hashtextextended(current_schema() || ' limit ' || _limited_type, 0)
        );
        _rooms[array_position(_types, _limited_type)] := least(_mine_now, _limit - (
            SELECT count(*) FROM dbbasic_jobs WHERE type = _limited_type AND status = 'processing'
        ));
    END LOOP;
    FOR try IN 1 .. 3 LOOP
        -- First how many jobs of each type are among the earliest, then as many are locked: so no
        -- job is locked that isn't claimed, and other workers find the rest.
        SELECT array_agg(locked.id) INTO _ids
        FROM (
            SELECT chosen.type, count(*) AS n
            FROM (
                SELECT wanted.type, job.run_at, job.number
                FROM unnest(_types, _rooms) AS wanted (type, room)
                CROSS JOIN LATERAL (
                    SELECT j.run_at, j.number FROM dbbasic_jobs j
                    WHERE j.type = wanted.type AND j.status = 'pending' AND j.run_at <= _now
                        AND (_mark IS NULL OR j.pending_number <= _mark) AND j.id <> ALL (_skip)
                    ORDER BY j.run_at, j.number
                    LIMIT greatest(wanted.room, 0)
                ) job
                ORDER BY job.run_at, job.number
                LIMIT _most
            ) chosen
            GROUP BY chosen.type
        ) wanted
        CROSS JOIN LATERAL (
            SELECT j.id FROM dbbasic_jobs j
            WHERE j.type = wanted.type AND j.status = 'pending' AND j.run_at <= _now
                AND (_mark IS NULL OR j.pending_number <= _mark) AND j.id <> ALL (_skip)
            ORDER BY j.run_at, j.number
            LIMIT wanted.n
            FOR UPDATE SKIP LOCKED
        ) locked;
        EXIT WHEN _ids IS NOT NULL;
        -- All of the earliest are locked, by claims or changes that are about to end; there may be
        -- later ones. Wait for the first, and look again.
        PERFORM FROM unnest(_types, _rooms) AS wanted (type, room) CROSS JOIN LATERAL (
            SELECT FROM dbbasic_jobs j
            WHERE j.type = wanted.type AND j.status = 'pending' AND j.run_at <= _now
                AND (_mark IS NULL OR j.pending_number <= _mark) AND j.id <> ALL (_skip)
            ORDER BY j.run_at, j.number
            LIMIT 1
            FOR UPDATE
        ) job WHERE wanted.room > 0 LIMIT 1;
        IF NOT FOUND AND try > 1 THEN
            RETURN;
        END IF;
    END LOOP;
    IF _ids IS NULL THEN
        RETURN;
    END IF;
    PERFORM dbbasic_own('on');
    UPDATE procrastinate_jobs SET status = 'doing', worker_id = _worker
        WHERE id IN (SELECT procrastinate_id FROM dbbasic_jobs WHERE id = ANY (_ids));
    PERFORM dbbasic_own('off');
    UPDATE dbbasic_workers SET listed_at = now() WHERE id = _worker;
    _number := nextval('dbbasic_claim_number');
    RETURN QUERY
        WITH claimed AS (
            UPDATE dbbasic_jobs SET
                status = 'processing', attempts = least(attempts + 1, _most_attempts),
                error = CASE error WHEN _stop_error THEN '' ELSE error END, result = '',
                version = version + 1, worker = _worker, claim_number = _number
            WHERE id = ANY (_ids)
            RETURNING *
        )
        SELECT * FROM claimed ORDER BY run_at, number;
END;
$$;

-- Return the types of pending jobs: one step through the index per type, not one per job.
CREATE OR REPLACE FUNCTION dbbasic_types() RETURNS SETOF text LANGUAGE plpgsql STABLE
    SET search_path FROM CURRENT
    SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_sort = off SET enable_incremental_sort = off AS $$
BEGIN
    RETURN QUERY
        WITH RECURSIVE found AS (
            (SELECT type FROM dbbasic_jobs WHERE status = 'pending' ORDER BY type LIMIT 1)
            UNION ALL
            SELECT (
                SELECT j.type FROM dbbasic_jobs j
                WHERE j.status = 'pending' AND j.type > found.type ORDER BY j.type LIMIT 1
            ) FROM found WHERE found.type IS NOT NULL
        )
        SELECT type FROM found WHERE type IS NOT NULL;
END;
$$;

CREATE OR REPLACE FUNCTION dbbasic_has_due(_types text[], _now bigint, _mark bigint)
    RETURNS boolean LANGUAGE plpgsql STABLE
    SET search_path FROM CURRENT
    SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_sort = off SET enable_incremental_sort = off AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM unnest(_types) AS wanted (type) CROSS JOIN LATERAL (
            SELECT FROM dbbasic_jobs j
            WHERE j.type = wanted.type AND j.status = 'pending' AND j.run_at <= _now
                AND (_mark IS NULL OR j.pending_number <= _mark)
            ORDER BY j.run_at, j.number
            LIMIT 1
        ) job
    );
END;
$$;

CREATE OR REPLACE FUNCTION dbbasic_due_late(_now bigint, _latest_created bigint)
    RETURNS SETOF dbbasic_jobs LANGUAGE plpgsql STABLE
    SET search_path FROM CURRENT SET jit = off SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY
        SELECT * FROM dbbasic_jobs WHERE status = 'pending' AND attempts > 0 AND run_at > _now
        UNION ALL
        SELECT * FROM dbbasic_jobs WHERE status = 'pending' AND created_at > _latest_created
            AND NOT (attempts > 0 AND run_at > _now);
END;
$$;


-- -- what attempts leave behind --

-- Add rows to the history, and remove rows now and then, so that the last _most are kept. A repeated
-- call doesn't add rows that are there.
CREATE OR REPLACE FUNCTION dbbasic_add_history(
    _job_ids text[], _ended_at double precision[], _lines text[], _most integer, _again boolean
) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    _first bigint;
    _last bigint;
BEGIN
    SELECT max(number) INTO _first FROM dbbasic_history;
    INSERT INTO dbbasic_history (job_id, ended_at, line)
        SELECT job_id, ended_at, line
        FROM unnest(_job_ids, _ended_at, _lines) WITH ORDINALITY AS new (job_id, ended_at, line, place)
        WHERE NOT _again OR NOT EXISTS (
            SELECT FROM dbbasic_history h WHERE h.job_id = new.job_id AND h.line = new.line
        )
        ORDER BY place;
    SELECT max(number) INTO _last FROM dbbasic_history;
    IF _last / 10000 > _first / 10000 THEN
        DELETE FROM dbbasic_history WHERE number <= (
            SELECT number FROM dbbasic_history ORDER BY number DESC OFFSET _most LIMIT 1
        );
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION dbbasic_put_output(_job_id text, _attempt integer, _line bytea)
    RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM dbbasic_jobs WHERE id = _job_id FOR KEY SHARE;
    IF FOUND THEN
        INSERT INTO dbbasic_output (job_id, attempt, line) VALUES (_job_id, _attempt, _line)
            ON CONFLICT (job_id, attempt) DO UPDATE
            SET line = EXCLUDED.line, kept_at = EXCLUDED.kept_at;
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION dbbasic_put_progress(_job_id text, _line text)
    RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF _line IS NULL THEN
        DELETE FROM dbbasic_progress WHERE job_id = _job_id;
        RETURN;
    END IF;
    PERFORM FROM dbbasic_jobs WHERE id = _job_id FOR KEY SHARE;
    IF FOUND THEN
        INSERT INTO dbbasic_progress VALUES (_job_id, _line)
            ON CONFLICT (job_id) DO UPDATE SET line = EXCLUDED.line;
    END IF;
END;
$$;
