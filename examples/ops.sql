-- What an operator asks at three in the morning: eleven questions, each one statement.
--
--     psql "$AGENTS_PG_URL" -f examples/ops.sql
--
-- Every statement runs as it is; change the names and times in it to yours. docs/operate.md shows answers and how to
-- read them. The tables are in the schema agents. They look at all tenants: with tenant_id = '…' in its WHERE, a statement
-- walks an index. What was said is shown as JSON text and not taken apart: PostgreSQL cannot look into JSON that holds a
-- NUL, and a customer may have typed one.


-- 1. What are the agents doing right now?
SELECT p.tenant_id, p.session_id, p.agent, p.status, p.turn_count AS turn, p.running_tool,
       c.last_item, c.last_event, now() - p.updated_at AS quiet_for
  FROM agents.agent_task_progress p
  JOIN agents.agent_current_state c USING (tenant_id, session_id)
 WHERE p.active_at > now() - interval '1 hour'
 ORDER BY p.updated_at DESC
 LIMIT 20;


-- 2. Which tools failed in the last hour, and why?
SELECT created_at, tenant_id, session_id, agent, tool_name, arguments, error
  FROM agents.tool_runs
 WHERE status = 'failed' AND created_at > now() - interval '1 hour'
 ORDER BY created_at DESC
 LIMIT 50;


-- 3. Which tool runs were the slowest today? Hooks measure them: session.hooks(), session.recording().
SELECT tool_name, round(duration_seconds::numeric, 3) AS seconds, status, tenant_id, session_id, arguments
  FROM agents.tool_run_details
 WHERE created_at > now() - interval '1 day' AND duration_seconds IS NOT NULL
 ORDER BY duration_seconds DESC
 LIMIT 20;


-- 4. What did a conversation cost, turn by turn, and in all?
SELECT coalesce(turn::text, 'all') AS turn, count(*) AS runs, sum(requests) AS requests, sum(input_tokens) AS input,
       sum(cached_tokens) AS cached, sum(output_tokens) AS output, sum(reasoning_tokens) AS reasoning,
       round(sum(model_seconds)::numeric, 3) AS model_seconds
  FROM agents.runs
 WHERE tenant_id = 'acme' AND session_id = 'chat-1'
 GROUP BY ROLLUP (turn)
 ORDER BY runs.turn;


-- 5. What did each agent cost per day?
SELECT (started_at AT TIME ZONE 'UTC')::date AS day, agent, count(*) AS runs, sum(requests) AS requests,
       sum(input_tokens) AS input, sum(output_tokens) AS output, sum(total_tokens) AS tokens
  FROM agents.runs
 WHERE started_at > now() - interval '7 days'
 GROUP BY day, agent
 ORDER BY day DESC, tokens DESC;


-- 6. Who waits for an approval, for what, and since when?
SELECT s.tenant_id, s.session_id, s.user_id, t.tool_name, t.arguments, now() - p.created_at AS waits_for,
       CASE WHEN p.claimed_until > now() THEN p.claimed_until END AS taken_until
  FROM agents.sessions s
  LEFT JOIN agents.tool_runs t ON (t.tenant_id, t.session_id) = (s.tenant_id, s.session_id)
   AND t.status = 'running' AND t.created_at >= s.active_at
  LEFT JOIN LATERAL (SELECT created_at, claimed_until FROM agents.snapshots n
                      WHERE (n.tenant_id, n.session_id) = (s.tenant_id, s.session_id) AND n.kind = 'run_state'
                        AND n.through_position = s.last_position
                      ORDER BY version DESC LIMIT 1) AS p ON true
 WHERE s.status = 'waiting'
 ORDER BY p.created_at, t.call_position;


-- 7. Which runs never ended? Nothing was heard of them for ten minutes.
SELECT r.tenant_id, r.session_id, r.agent, r.started_at, now() - r.last_seen_at AS silent_for,
       last.type AS last_type, last.role AS last_role, r.run_id
  FROM agents.runs r
  LEFT JOIN LATERAL (SELECT type, role FROM agents.items i
                      WHERE (i.tenant_id, i.session_id, i.run_id) = (r.tenant_id, r.session_id, r.run_id)
                      ORDER BY position DESC LIMIT 1) AS last ON true
 WHERE r.status = 'running' AND r.last_seen_at < now() - interval '10 minutes'
   AND r.started_at > now() - interval '1 day'
 ORDER BY r.started_at DESC;


-- 8. What did the agent know when it made the call that failed last? Everything up to that call.
WITH failed AS (
    SELECT tenant_id, session_id, call_position FROM agents.tool_runs
     WHERE status = 'failed' AND created_at > now() - interval '1 day'
     ORDER BY created_at DESC LIMIT 1
)
SELECT i.position, i.turn, i.type, i.role, left(i.item::text, 120) AS item
  FROM failed JOIN agents.items i ON (i.tenant_id, i.session_id) = (failed.tenant_id, failed.session_id)
   AND i.position <= failed.call_position
 ORDER BY i.position;


-- 9. Which conversations did a user have, newest activity first?
SELECT session_id, agent, status, turn_count AS turns, tool_run_count AS tool_runs, tool_error_count AS errors,
       input_tokens + output_tokens AS tokens, active_at, forked_from
  FROM agents.sessions
 WHERE tenant_id = 'acme' AND user_id = 'ada'
 ORDER BY active_at DESC
 LIMIT 50;


-- 10. What happened around the last failure? Every event of that run, in order.
WITH failed AS (
    SELECT tenant_id, session_id, run_id FROM agents.tool_runs
     WHERE status = 'failed' AND created_at > now() - interval '1 day'
     ORDER BY created_at DESC LIMIT 1
)
SELECT e.event_id, e.created_at, e.kind, e.agent, left(e.payload::text, 120) AS payload
  FROM failed JOIN agents.events e USING (tenant_id, session_id, run_id)
 ORDER BY e.event_id;


-- 11. Which conversations grow too long for their model?
SELECT s.tenant_id, s.session_id, s.agent, s.turn_count AS turns, s.item_count AS items, newest.tokens_per_request,
       s.total_tokens, round(s.duration_seconds / 3600) AS hours
  FROM agents.session_summary s
  LEFT JOIN LATERAL (SELECT input_tokens / nullif(requests, 0) AS tokens_per_request FROM agents.runs r
                      WHERE (r.tenant_id, r.session_id) = (s.tenant_id, s.session_id)
                      ORDER BY started_at DESC, run_id DESC LIMIT 1) AS newest ON true
 WHERE s.updated_at > now() - interval '7 days'
 ORDER BY s.item_count DESC
 LIMIT 20;
