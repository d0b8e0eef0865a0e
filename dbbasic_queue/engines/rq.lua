-- The changes of a queue in Redis or Valkey, each one atomic script; `rq.py` calls them.
--
-- `redis_client` puts the names of RQ's keys before this text, and one of the sections below after
-- the common part. A section begins with a line "-- script NAME: its arguments".
--
-- What a job's state means isn't known here: a change says where the job goes, and which fields of
-- its hash it sets. The fields q_* are ours, all others are RQ's:
--
--   q_version  another number after each change of its state or payload
--   q_number   its place in the order of adding
--   q_seq      the number that it got when it was last added to its RQ queue: queues are in its order
--   q_place    queue, scheduled, started, finished, failed or canceled: where RQ has its id
--   q_state    its state, as `encode_state` writes it; q_next is the state that a claim gives it
--   q_payload, q_unique, q_worker, q_claim, q_history
--
-- Keys of ours, after the prefix P:
--
--   meta       hash: counter (of all numbers), latest (the highest created_at of any job)
--   jobs       sorted set: job -> q_number
--   types      set: the names of all RQ queues of this queue
--   pending:Q  set: the jobs of an RQ queue that are pending
--   strays     set: the RQ queues where a job was found that isn't where it should be
--   unique     sorted set, all scores 0: q_unique:job, for each pending job
--   due        sorted set: scheduled job -> its score in RQ's registry, for all types together
--   retries    sorted set: scheduled job with attempts -> run_at
--   processing sorted set: job -> q_claim
--   running:Q  set: the jobs of an RQ queue that are processing
--   alive      sorted set: worker -> until when it counts as alive
--   workers    hash: worker -> its name, parallel, and when it was opened
--   listed     hash: worker -> when it last claimed jobs
--   claims:W   list: the jobs that a worker has claimed, in the order of its claims
--   call:C     the number and the result of the last change that a client has made
--   values     hash: named values
--   news       channel on which added jobs are reported
--   history    stream; output:J  hash of a job: attempt -> row; progress  hash: job -> row
--
-- If the server is out of memory, it refuses a script's first write if that needs memory, but none
-- after a write that needs none. So scripts that add jobs do nothing then, and all others begin
-- their writes with a DEL.

local P, PREFIX = KEYS[1], KEYS[2]
local META, UNIQUE = P .. 'meta', P .. 'unique'
local call = redis.call

local function counter(n)
  return call('HINCRBY', META, 'counter', n or 1)
end

local function server_time()
  local t = call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

local function even_if_full()
  call('DEL', P .. 'none')
end

-- ARGV[1] and ARGV[2] are the client and the number of its call. Returns the result of that call
-- if it was made already: the client calls again after its connection broke.
local function made_before()
  local last = call('GET', P .. 'call:' .. ARGV[1])
  if not last then return nil end
  local number, result = string.match(last, '^(%d+) (.*)$')
  if tonumber(number) < tonumber(ARGV[2]) then return nil end
  if number == ARGV[2] then return result end
  return redis.error_reply('SUPERSEDED a later call was made')
end

local function made(result)
  call('SET', P .. 'call:' .. ARGV[1], ARGV[2] .. ' ' .. result, 'EX', 600)
  return result
end

-- Within a second, scheduled jobs are due in the order of adding.
local function score_of(run_at, number)
  return tonumber(run_at) + (tonumber(number) % 1048576) / 1048576
end

local function schedule(job, queue, run_at, number, is_retry)
  local score = score_of(run_at, number)
  call('ZADD', SCHEDULED .. queue, score, job)
  call('ZADD', P .. 'due', score, job)
  if is_retry == '1' then
    call('ZADD', P .. 'retries', run_at, job)
  else
    call('ZREM', P .. 'retries', job)
  end
end

local function unschedule(job, queue)
  call('ZREM', SCHEDULED .. queue, job)
  call('ZREM', P .. 'due', job)
  call('ZREM', P .. 'retries', job)
end

-- Insert a job into its RQ queue where its q_seq belongs, which is nearly always the head.
local function insert(job, queue, seq)
  local from = 0
  while true do
    local ids = call('LRANGE', QUEUE .. queue, from, from + 63)
    for _, id in ipairs(ids) do
      if tonumber(call('HGET', JOB .. id, 'q_seq') or 0) > seq then
        call('LINSERT', QUEUE .. queue, 'BEFORE', id, job)
        return
      end
    end
    if #ids < 64 then
      call('RPUSH', QUEUE .. queue, job)
      return
    end
    from = from + 64
  end
end

-- Return whether the queue was moved to another address, unless the caller uses it anyway.
local MOVED = 'the queue was moved'
local function is_moved(anyway)
  return anyway ~= '1' and (call('HGET', P .. 'values', 'moved') or '') ~= ''
end

local function register(queue)
  if call('SADD', P .. 'types', queue) == 1 then
    call('SADD', QUEUES, QUEUE .. queue)
  end
end

local function enter_finished(job, queue, place)
  if place == 'finished' then
    call('ZADD', FINISHED .. queue, '+inf', job)
  elseif place == 'failed' then
    call('ZADD', FAILED .. queue, -1, job)
  else
    call('ZADD', CANCELED .. queue, math.floor(server_time()), job)
  end
end

local function forget_claim(job, queue, worker, claim, place)
  call('ZREM', STARTED .. queue, job .. ':' .. claim)
  call('SREM', P .. 'running:' .. queue, job)
  call('ZREM', P .. 'processing', job)
  call('LREM', P .. 'claims:' .. worker, 1, job)
  local key = WORKER .. worker
  if call('EXISTS', key) == 1 then
    if place == 'finished' then
      call('HINCRBY', key, 'successful_job_count', 1)
    elseif place == 'failed' then
      call('HINCRBY', key, 'failed_job_count', 1)
    end
    local next_one = call('LINDEX', P .. 'claims:' .. worker, 0)
    if next_one then
      call('HSET', key, 'current_job', next_one)
    else
      call('HDEL', key, 'current_job')
      call('HSET', key, 'state', 'idle')
    end
  end
end

local function leave(job, queue, place, new_place, unique, worker, claim)
  if place == 'queue' or place == 'scheduled' then
    if place == 'queue' then
      call('LREM', QUEUE .. queue, 1, job)
    else
      unschedule(job, queue)
    end
    call('SREM', P .. 'pending:' .. queue, job)
    call('ZREM', UNIQUE, unique .. ':' .. job)
  elseif place == 'started' then
    forget_claim(job, queue, worker, claim, new_place)
  elseif place == 'finished' then
    call('ZREM', FINISHED .. queue, job)
  elseif place == 'failed' then
    call('ZREM', FAILED .. queue, job)
  else
    call('ZREM', CANCELED .. queue, job)
  end
end

-- Execute a command with many arguments: one call is quicker than one for each, and unpack has a limit.
local function call_with_all(command, key, arguments)
  for i = 1, #arguments, 1000 do
    call(command, key, unpack(arguments, i, math.min(i + 999, #arguments)))
  end
end

local function append(list, one, two)
  list[#list + 1] = one
  list[#list + 1] = two
end

local function fields_at(first, count)
  local fields = {}
  for i = 1, count do
    fields[i] = ARGV[first + i - 1]
  end
  return fields
end

-- Rows, in arguments: how many fields all of them have, these fields, and for each row: job, RQ queue,
-- place, run_at, is_retry, created_at, unique, how many more fields, fields.

-- Return the fields that all rows have, whose arguments begin at ARGV[first], and where these end.
local function common_fields(first)
  local count = tonumber(ARGV[first])
  return fields_at(first + 1, count), first + 1 + count
end

-- Add the rows that begin at ARGV[first].
local function add_rows(first, rows)
  local common, at = common_fields(first)
  local latest = 0
  local jobs, uniques, queued, pending = {}, {}, {}, {}
  local number = counter(rows) - rows
  for _ = 1, rows do
    local job, queue, place, run_at, is_retry, created_at, unique, count =
      ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6],
      tonumber(ARGV[at + 7])
    local key = JOB .. job
    if call('EXISTS', key) == 0 then
      number = number + 1
      local fields = fields_at(at + 8, count)
      for _, field in ipairs(common) do
        fields[#fields + 1] = field
      end
      for _, more in ipairs({'q_version', number, 'q_number', number, 'q_seq', number,
                             'q_place', place, 'q_unique', unique}) do
        fields[#fields + 1] = more
      end
      call('HSET', key, unpack(fields))
      append(jobs, number, job)
      if not pending[queue] then
        register(queue)
        queued[queue], pending[queue] = {}, {}
      end
      if place == 'queue' or place == 'scheduled' then
        if place == 'queue' then
          append(queued[queue], job)
        else
          schedule(job, queue, run_at, number, is_retry)
        end
        append(pending[queue], job)
        append(uniques, 0, unique .. ':' .. job)
      else
        enter_finished(job, queue, place)
      end
      latest = math.max(latest, tonumber(created_at))
    end
    at = at + 8 + count
  end
  call_with_all('ZADD', P .. 'jobs', jobs)
  call_with_all('ZADD', UNIQUE, uniques)
  for queue in pairs(pending) do
    call_with_all('RPUSH', QUEUE .. queue, queued[queue])
    call_with_all('SADD', P .. 'pending:' .. queue, pending[queue])
  end
  if latest > tonumber(call('HGET', META, 'latest') or 0) then
    call('HSET', META, 'latest', latest)
  end
  call('PUBLISH', P .. 'news', '')
end

-- Return whether none of the jobs exists whose rows begin at ARGV[first].
local function are_new(first, rows)
  local _, at = common_fields(first)
  for _ = 1, rows do
    if call('EXISTS', JOB .. ARGV[at]) == 1 then return false end
    at = at + 8 + tonumber(ARGV[at + 7])
  end
  return true
end

local function row_of(job)
  local row = call('HMGET', JOB .. job, 'origin', 'q_payload', 'q_state', 'q_version')
  if not (row[1] and row[3] and row[4]) then return nil end
  return {job, row[1], row[2] or '', row[3], row[4]}
end

local function is_alive(worker)
  local until_ = call('ZSCORE', P .. 'alive', worker)
  return until_ and tonumber(until_) >= server_time()
end

local function forget_worker(worker)
  call('HDEL', P .. 'workers', worker)
  call('HDEL', P .. 'listed', worker)
end

local function forget_rq_worker(worker)
  call('DEL', WORKER .. worker)
  call('SREM', WORKERS, WORKER .. worker)
  for _, queue in ipairs(call('SMEMBERS', P .. 'types')) do
    call('SREM', WORKERS_BY_QUEUE .. queue, WORKER .. worker)
  end
end

local function list_rq_worker(worker)
  local queues = call('SMEMBERS', P .. 'types')
  table.sort(queues)
  for _, queue in ipairs(queues) do
    call('SADD', WORKERS_BY_QUEUE .. queue, WORKER .. worker)
  end
  call('HSET', WORKER .. worker, 'queues', table.concat(queues, ','))
end

-- script add: client, number, anyway, "own" | "random" | "more", how many, rows
-- Only the first of several scripts in a transaction isn't "more".
if ARGV[4] == 'more' then
  local last = call('GET', P .. 'call:' .. ARGV[1])
  if not last or string.match(last, '^%d+') ~= ARGV[2] or string.sub(last, -1) ~= '1' then
    return '0'
  end
  even_if_full()
  add_rows(6, tonumber(ARGV[5]))
  return '1'
end
local before = made_before()
if before then return before end
if is_moved(ARGV[3]) then return MOVED end
if ARGV[4] == 'own' and not are_new(6, tonumber(ARGV[5])) then
  return '0'
end
counter()
add_rows(6, tonumber(ARGV[5]))
return made('1')

-- script add_unless_pending: client, number, anyway, unique, one row
local before = made_before()
if before then return before end
if is_moved(ARGV[3]) then return MOVED end
local found = call('ZRANGEBYLEX', UNIQUE, '[' .. ARGV[4] .. ':', '(' .. ARGV[4] .. ';')
for _, member in ipairs(found) do
  local job = string.sub(member, #ARGV[4] + 2)
  local place = call('HGET', JOB .. job, 'q_place')
  if place == 'queue' or place == 'scheduled' then
    return job
  end
end
counter()
add_rows(5, 1)
return made('')

-- script replace: client, number, anyway, name, before, after, how many, rows
local before = made_before()
if before then return before end
if ARGV[7] ~= '0' and is_moved(ARGV[3]) then return MOVED end
if (call('HGET', P .. 'values', ARGV[4]) or '') ~= ARGV[5] then return '0' end
if not are_new(8, tonumber(ARGV[7])) then return '0' end
if ARGV[7] == '0' then even_if_full() end
counter()
if ARGV[6] == '' then
  call('HDEL', P .. 'values', ARGV[4])
else
  call('HSET', P .. 'values', ARGV[4], ARGV[6])
end
add_rows(8, tonumber(ARGV[7]))
return made('1')

-- script change: client, number, how many, and for each: job, version, target, run_at,
-- is_retry, unique, how many fields, fields
local before = made_before()
if before then return before end
even_if_full()
local starts, at = {}, 4
for i = 1, tonumber(ARGV[3]) do
  starts[i] = at
  at = at + 7 + tonumber(ARGV[at + 6])
end
local results = {}
for i = #starts, 1, -1 do  -- so that unclaimed jobs are put before the head of the queue
  local at = starts[i]
  local job, version, target, run_at, is_retry, unique =
    ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local key = JOB .. job
  local found = call('HMGET', key, 'q_version', 'q_place', 'origin', 'q_unique', 'q_number',
                     'q_seq', 'q_worker', 'q_claim')
  local place, queue, old_unique = found[2], found[3], found[4]
  results[i] = '0'
  if found[1] == version then
    results[i] = '1'
    if target == 'removed' then
      leave(job, queue, place, target, old_unique, found[7], found[8])
      for _, registry in ipairs({FINISHED, FAILED, CANCELED}) do  -- RQ's tools may have put it there
        call('ZREM', registry .. queue, job)
      end
      call('ZREM', P .. 'jobs', job)
      call('HDEL', P .. 'progress', job)
      call('DEL', key, P .. 'output:' .. job, RESULTS .. job)
    else
      local fields = fields_at(at + 7, tonumber(ARGV[at + 6]))
      if target == 'keep' then
        target = place
        if unique ~= '' and unique ~= old_unique then
          call('ZREM', UNIQUE, old_unique .. ':' .. job)
          call('ZADD', UNIQUE, 0, unique .. ':' .. job)
          fields[#fields + 1] = 'q_unique'
          fields[#fields + 1] = unique
        end
      elseif (target == 'scheduled' or target == 'queue') and
             (place == 'scheduled' or place == 'queue') then
        target = place
        if place == 'scheduled' then
          schedule(job, queue, run_at, found[5], is_retry)
        end
      else
        leave(job, queue, place, target, old_unique, found[7], found[8])
        if target == 'queue' or target == 'scheduled' then
          if target == 'queue' then
            insert(job, queue, tonumber(found[6]))
          else
            schedule(job, queue, run_at, found[5], is_retry)
          end
          call('SADD', P .. 'pending:' .. queue, job)
          call('ZADD', UNIQUE, 0, old_unique .. ':' .. job)
        else
          enter_finished(job, queue, target)
        end
      end
      for _, more in ipairs({'q_version', counter(), 'q_place', target}) do
        fields[#fields + 1] = more
      end
      if target == 'queue' then
        fields[#fields + 1] = 'status'
        fields[#fields + 1] = 'queued'
      elseif target == 'scheduled' then
        fields[#fields + 1] = 'status'
        fields[#fields + 1] = 'scheduled'
      end
      call('HSET', key, unpack(fields))
    end
  end
end
return made(table.concat(results))

-- script find: job
return row_of(ARGV[1])

-- script rows: number after which to begin, last number or "", how many bytes at most, RQ queue or "",
-- 1 for jobs with an error only, places
-- Returns the last number of all, the number after which to go on or "", and rows.
local wanted = {}
for i = 6, #ARGV do
  wanted[ARGV[i]] = true
end
local last = ARGV[2]
if last == '' then last = call('HGET', META, 'counter') or '0' end
local ids = call('ZRANGEBYSCORE', P .. 'jobs', '(' .. ARGV[1], last, 'WITHSCORES', 'LIMIT', 0, 1000)
local rows, bytes, next_ = {last, ''}, 0, ''
for i = 1, #ids, 2 do
  local found = call('HMGET', JOB .. ids[i], 'q_place', 'origin', 'exc_info')
  local row = wanted[found[1]] and (ARGV[4] == '' or found[2] == ARGV[4]) and
              (ARGV[5] == '0' or (found[3] or '') ~= '') and row_of(ids[i])
  if row then
    rows[#rows + 1] = row
    bytes = bytes + #row[3] + #row[4]
  end
  if bytes > tonumber(ARGV[3]) or i == #ids - 1 then
    next_ = ids[i + 1]
    break
  end
end
rows[2] = next_
return rows

-- script overview: the score below which jobs are due
-- Returns how many jobs are processing, and of each RQ queue: its name, how many jobs are pending,
-- finished, failed, canceled, and due, the first row that isn't due, and the first ones that are.
local found = {call('ZCARD', P .. 'processing')}
for _, queue in ipairs(call('SMEMBERS', P .. 'types')) do
  local due = '(' .. ARGV[1]
  local one = {queue, call('SCARD', P .. 'pending:' .. queue), call('ZCARD', FINISHED .. queue),
               call('ZCARD', FAILED .. queue), call('ZCARD', CANCELED .. queue),
               call('LLEN', QUEUE .. queue) + call('ZCOUNT', SCHEDULED .. queue, '-inf', due)}
  local later = call('ZRANGEBYSCORE', SCHEDULED .. queue, ARGV[1], '+inf', 'LIMIT', 0, 1)
  one[#one + 1] = later[1] and row_of(later[1]) or false
  for _, ids in ipairs({call('LRANGE', QUEUE .. queue, 0, 0),
                        call('ZRANGEBYSCORE', SCHEDULED .. queue, '-inf', due, 'LIMIT', 0, 1)}) do
    one[#one + 1] = ids[1] and row_of(ids[1])
  end
  found[#found + 1] = one
end
return found

-- script placed: how many jobs at most, RQ queue or "", places
-- Returns the jobs in these places, in the order of adding; false if there are more.
local found, registries = {}, {finished = FINISHED, failed = FAILED, canceled = CANCELED}
for _, queue in ipairs(ARGV[2] ~= '' and {ARGV[2]} or call('SMEMBERS', P .. 'types')) do
  for i = 3, #ARGV do
    local jobs = {}
    if registries[ARGV[i]] then
      jobs = call('ZRANGE', registries[ARGV[i]] .. queue, 0, ARGV[1])
    elseif ARGV[i] == 'started' then
      jobs = call('SMEMBERS', P .. 'running:' .. queue)
    elseif ARGV[i] == 'queue' then  -- with those that are scheduled
      if call('SCARD', P .. 'pending:' .. queue) > tonumber(ARGV[1]) then return false end
      jobs = call('SMEMBERS', P .. 'pending:' .. queue)
    end
    if #found + #jobs > tonumber(ARGV[1]) then return false end
    for _, job in ipairs(jobs) do
      found[#found + 1] = {tonumber(call('ZSCORE', P .. 'jobs', job) or 0), job}
    end
  end
end
table.sort(found, function(one, two) return one[1] < two[1] end)
for i, pair in ipairs(found) do
  found[i] = pair[2]
end
return found

-- script some: jobs
local rows = {}
for _, job in ipairs(ARGV) do
  rows[#rows + 1] = row_of(job)
end
return rows

-- script processing:
local rows = {}
for _, job in ipairs(call('ZRANGE', P .. 'processing', 0, -1)) do
  rows[#rows + 1] = row_of(job)
end
return rows

-- script pending:
-- Returns the RQ queues that have pending jobs.
local found = {}
for _, queue in ipairs(call('SMEMBERS', P .. 'types')) do
  if call('EXISTS', P .. 'pending:' .. queue) == 1 then found[#found + 1] = queue end
end
return found

-- script has_open:
if call('ZCARD', P .. 'processing') > 0 then return 1 end
for _, queue in ipairs(call('SMEMBERS', P .. 'types')) do
  if call('EXISTS', P .. 'pending:' .. queue, QUEUE .. queue) > 0 then return 1 end
end
return 0

-- script count_due: the score below which jobs are due
local due = call('ZCOUNT', P .. 'due', '-inf', '(' .. ARGV[1])
for _, queue in ipairs(call('SMEMBERS', P .. 'types')) do
  due = due + call('LLEN', QUEUE .. queue)
end
return due

-- script late: now, the tolerance in seconds
-- Returns the latest created_at if that is too late, or "", and the jobs of late retries.
local found = call('ZRANGEBYSCORE', P .. 'retries', '(' .. ARGV[1], '+inf')
local latest = call('HGET', META, 'latest') or '0'
local is_ahead = tonumber(latest) > tonumber(ARGV[1]) + tonumber(ARGV[2])
table.insert(found, 1, is_ahead and latest or '')
return found

-- script set_latest: before, after
if call('HGET', META, 'latest') == ARGV[1] then
  even_if_full()
  call('HSET', META, 'latest', ARGV[2])
end
return 1

-- script open_worker: worker, text, seconds, name and value of each field of RQ's hash
even_if_full()
call('ZADD', P .. 'alive', server_time() + tonumber(ARGV[3]), ARGV[1])
call('HSET', P .. 'workers', ARGV[1], ARGV[2] .. '\t' .. string.format('%.3f', server_time()))
call('HSET', WORKER .. ARGV[1], unpack(ARGV, 4))
list_rq_worker(ARGV[1])
call('EXPIRE', WORKER .. ARGV[1], ARGV[3])
call('SADD', WORKERS, WORKER .. ARGV[1])
return 1

-- script beat: worker, seconds, last_heartbeat
even_if_full()
if not is_alive(ARGV[1]) then
  forget_rq_worker(ARGV[1])
  return 0
end
call('ZADD', P .. 'alive', server_time() + tonumber(ARGV[2]), ARGV[1])
call('HSET', WORKER .. ARGV[1], 'last_heartbeat', ARGV[3])
list_rq_worker(ARGV[1])
call('EXPIRE', WORKER .. ARGV[1], ARGV[2])
return 1

-- script close_worker: worker
even_if_full()
call('ZREM', P .. 'alive', ARGV[1])
forget_rq_worker(ARGV[1])
if call('LLEN', P .. 'claims:' .. ARGV[1]) == 0 then
  forget_worker(ARGV[1])
end
return 1

-- script workers:
-- Returns of each live worker: its text, when it last claimed, and pairs of job and state.
local found = {}
for _, worker in ipairs(call('HKEYS', P .. 'workers')) do
  if is_alive(worker) then
    local one = {call('HGET', P .. 'workers', worker), call('HGET', P .. 'listed', worker) or ''}
    for _, job in ipairs(call('LRANGE', P .. 'claims:' .. worker, 0, -1)) do
      local state = call('HGET', JOB .. job, 'q_state')
      if state then
        one[#one + 1] = job
        one[#one + 1] = state
      end
    end
    found[#found + 1] = one
  end
end
return found

-- script claimed: worker
local rows = {}
for _, job in ipairs(call('LRANGE', P .. 'claims:' .. ARGV[1], 0, -1)) do
  rows[#rows + 1] = row_of(job)
end
return rows

-- script dead_claims:
-- Returns of each dead worker that has claims: its text, and rows. Forgets those that have none.
even_if_full()
local found = {}
for _, worker in ipairs(call('HKEYS', P .. 'workers')) do
  if not is_alive(worker) then
    local key = P .. 'claims:' .. worker
    local one = {call('HGET', P .. 'workers', worker)}
    for _, job in ipairs(call('LRANGE', key, 0, -1)) do
      local row = row_of(job)
      one[#one + 1] = row
      if not row then  -- RQ's own tools have removed it
        call('LREM', key, 1, job)
        call('ZREM', P .. 'processing', job)
        call('ZREM', P .. 'jobs', job)
        for _, queue in ipairs(call('SMEMBERS', P .. 'types')) do
          if call('SREM', P .. 'running:' .. queue, job) == 1 then
            for _, member in ipairs(call('ZRANGE', STARTED .. queue, 0, -1)) do
              if string.sub(member, 1, #job + 1) == job .. ':' then
                call('ZREM', STARTED .. queue, member)
              end
            end
          end
        end
      end
    end
    if #one == 1 then
      forget_worker(worker)
      forget_rq_worker(worker)
      call('ZREM', P .. 'alive', worker)
    else
      found[#found + 1] = one
    end
  end
end
return found

-- script look: the score below which jobs are due, how many at most, enqueued_at
-- Returns how many scheduled jobs were due, the mark, and the RQ queues that RQ's tools changed.
even_if_full()
local due = call('ZRANGEBYSCORE', P .. 'due', '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, job in ipairs(due) do
  local found = call('HMGET', JOB .. job, 'origin', 'q_place')
  call('ZREM', P .. 'due', job)
  call('ZREM', P .. 'retries', job)
  if found[1] and found[2] == 'scheduled' then
    if call('ZREM', SCHEDULED .. found[1], job) == 1 then
      call('RPUSH', QUEUE .. found[1], job)
      call('HSET', JOB .. job, 'q_place', 'queue', 'q_seq', counter(), 'status', 'queued',
           'enqueued_at', ARGV[3])
    else
      call('SADD', P .. 'strays', found[1])
    end
  end
end
local result = {#due, tonumber(call('HGET', META, 'counter') or '0')}
if #due < tonumber(ARGV[2]) then
  for _, queue in ipairs(call('SMEMBERS', P .. 'types')) do
    local listed = call('LLEN', QUEUE .. queue) + call('ZCARD', SCHEDULED .. queue)
    if listed ~= call('SCARD', P .. 'pending:' .. queue) or
       call('SISMEMBER', P .. 'strays', queue) == 1 then
      result[#result + 1] = queue
    end
  end
end
return result

-- script has_due: mark or "", RQ queues
for i = 2, #ARGV do
  for _, job in ipairs(call('LRANGE', QUEUE .. ARGV[i], 0, 63)) do
    local found = call('HMGET', JOB .. job, 'q_place', 'q_seq')
    if found[1] == 'queue' then
      if ARGV[1] == '' or tonumber(found[2]) <= tonumber(ARGV[1]) then return 1 end
      break
    end
    even_if_full()
    call('SADD', P .. 'strays', ARGV[i])
  end
end
return 0

-- script claim: client, number, anyway, worker, most, mark or "", started_at, how many RQ queues,
-- and for each: its name, how many may be processing or "", how many may be claimed; then the jobs
-- to skip
local before = made_before()
if type(before) == 'table' then return before end
if before then
  local rows = {}
  for job in string.gmatch(before, '%S+') do
    rows[#rows + 1] = row_of(job)
  end
  return rows
end
if is_moved(ARGV[3]) then return MOVED end
even_if_full()
local worker, most, mark = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
if not is_alive(worker) then return {} end
local skip, cursors = {}, {}
local after = 9 + 3 * tonumber(ARGV[8])
for i = after, #ARGV do
  skip[ARGV[i]] = true
end

local chunk = math.max(math.min(most, 64), 8)

-- Move a cursor to the next job that can be claimed; its `seq` is nil if there is none.
local function move(cursor)
  cursor.seq = nil
  if cursor.left <= 0 then return end
  while true do
    cursor.at = cursor.at + 1
    local job = cursor.ids[cursor.at]
    if not job then
      if cursor.at > 1 and #cursor.ids < chunk then return end
      cursor.ids = call('LRANGE', QUEUE .. cursor.queue, cursor.from, cursor.from + chunk - 1)
      cursor.from = cursor.from + #cursor.ids
      cursor.at = 1
      job = cursor.ids[1]
      if not job then return end
    end
    if not skip[job] then
      local found = call('HMGET', JOB .. job, 'q_place', 'q_seq', 'q_payload', 'q_next', 'q_unique')
      if found[1] == 'queue' and found[4] then
        local seq = tonumber(found[2])
        if mark and seq > mark then return end
        cursor.job, cursor.seq, cursor.found = job, seq, found
        return
      end
      call('SADD', P .. 'strays', cursor.queue)
    end
  end
end

for i = 9, after - 1, 3 do
  local left = math.huge
  if ARGV[i + 1] ~= '' then
    left = math.min(tonumber(ARGV[i + 1]) - call('SCARD', P .. 'running:' .. ARGV[i]),
                    tonumber(ARGV[i + 2]))
  end
  local cursor = {queue = ARGV[i], left = left, from = 0, at = 0, ids = {}}
  move(cursor)
  cursors[#cursors + 1] = cursor
end

local rows, claimed = {}, {}
while #rows < most do
  local first = nil
  for _, cursor in ipairs(cursors) do
    if cursor.seq and (not first or cursor.seq < first.seq) then first = cursor end
  end
  if not first then break end
  local job, queue, found = first.job, first.queue, first.found
  local version = counter()
  call('HSET', JOB .. job, 'q_state', found[4], 'q_version', version, 'q_place', 'started',
       'q_worker', worker, 'q_claim', version, 'status', 'started', 'started_at', ARGV[7],
       'worker_name', worker)
  call('ZREM', UNIQUE, found[5] .. ':' .. job)
  call('SADD', P .. 'running:' .. queue, job)
  call('ZADD', P .. 'processing', version, job)
  call('RPUSH', P .. 'claims:' .. worker, job)
  call('ZADD', STARTED .. queue, '+inf', job .. ':' .. version)
  rows[#rows + 1] = {job, queue, found[3] or '', found[4], version}
  first.left = first.left - 1
  claimed[queue] = claimed[queue] or {}
  table.insert(claimed[queue], job)
  move(first)
end
for queue, jobs in pairs(claimed) do
  for _, job in ipairs(jobs) do
    call('LREM', QUEUE .. queue, 1, job)
    call('SREM', P .. 'pending:' .. queue, job)
  end
end
if #rows > 0 then
  call('HSET', P .. 'listed', worker, string.format('%.3f', server_time()))
  if call('EXISTS', WORKER .. worker) == 1 then
    call('HSET', WORKER .. worker, 'state', 'busy', 'current_job',
         call('LINDEX', P .. 'claims:' .. worker, 0))
  end
end
local ids = {}
for i, row in ipairs(rows) do
  ids[i] = row[1]
end
made(table.concat(ids, ' '))
return rows

-- script members: RQ queue
-- Returns the jobs in the queue, those in RQ's schedule, and those that are pending.
even_if_full()
call('SREM', P .. 'strays', ARGV[1])
return {call('LRANGE', QUEUE .. ARGV[1], 0, -1), call('ZRANGE', SCHEDULED .. ARGV[1], 0, -1),
        call('SMEMBERS', P .. 'pending:' .. ARGV[1])}

-- script places: jobs
-- Returns the q_place and RQ's status of each, or "".
local found = {}
for i, job in ipairs(ARGV) do
  local one = call('HMGET', JOB .. job, 'q_place', 'status')
  found[i] = {one[1] or '', one[2] or ''}
end
return found

-- script put_back: RQ queue, job
-- Puts a job where RQ has it if RQ's own tools leave it alone; forgets it if they have removed it.
even_if_full()
local queue, job = ARGV[1], ARGV[2]
local found = call('HMGET', JOB .. job, 'q_place', 'q_seq', 'q_number', 'q_state', 'origin')
if found[5] and found[5] ~= queue then return 0 end
call('LREM', QUEUE .. queue, 0, job)
call('DEL', RESULTS .. job)
if not found[1] then
  unschedule(job, queue)
  call('SREM', P .. 'pending:' .. queue, job)
  call('ZREM', P .. 'jobs', job)
  call('HDEL', P .. 'progress', job)
  call('DEL', P .. 'output:' .. job)
  return 1
end
if found[1] == 'queue' then
  unschedule(job, queue)
  insert(job, queue, tonumber(found[2]))
  call('HSET', JOB .. job, 'status', 'queued')
elseif found[1] == 'scheduled' then
  local run_at, attempts = string.match(found[4], '^[^\t]*\t[^\t]*\t(%d+)\t(%d+)')
  schedule(job, queue, run_at, found[3], attempts == '0' and '0' or '1')
  call('HSET', JOB .. job, 'status', 'scheduled')
else
  unschedule(job, queue)
end
if found[1] ~= 'failed' then call('ZREM', FAILED .. queue, job) end
if found[1] ~= 'finished' then call('ZREM', FINISHED .. queue, job) end
if found[1] ~= 'canceled' then call('ZREM', CANCELED .. queue, job) end
return 1

-- script add_history: client, number, the most rows to keep, job and row of each
local before = made_before()
if before then return before end
even_if_full()
for i = 4, #ARGV, 2 do
  local id = call('XADD', P .. 'history', 'MAXLEN', '~', ARGV[3], '*', 'row', ARGV[i + 1])
  local key = JOB .. ARGV[i]
  if call('EXISTS', key) == 1 then
    local ids = call('HGET', key, 'q_history')
    call('HSET', key, 'q_history', ids and (ids .. ' ' .. id) or id)
  end
end
return made('1')

-- script history_of: job
-- Returns false if the job doesn't exist; otherwise its rows.
if call('EXISTS', JOB .. ARGV[1]) == 0 then return false end
local rows = {}
for id in string.gmatch(call('HGET', JOB .. ARGV[1], 'q_history') or '', '%S+') do
  for _, entry in ipairs(call('XRANGE', P .. 'history', id, id)) do
    rows[#rows + 1] = entry[2][2]
  end
end
return rows

-- script put_output: job, attempt, row
even_if_full()
if call('EXISTS', JOB .. ARGV[1]) == 1 then
  call('HSET', P .. 'output:' .. ARGV[1], ARGV[2], ARGV[3], 'last', ARGV[2])
end
return 1

-- script output: job, attempt or ""
local key = P .. 'output:' .. ARGV[1]
local attempt = ARGV[2]
if attempt == '' then attempt = call('HGET', key, 'last') end
return attempt and call('HGET', key, attempt)

-- script put_progress: job, row or ""
even_if_full()
if ARGV[2] == '' then
  call('HDEL', P .. 'progress', ARGV[1])
elseif call('EXISTS', JOB .. ARGV[1]) == 1 then
  call('HSET', P .. 'progress', ARGV[1], ARGV[2])
end
return 1
