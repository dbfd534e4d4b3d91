"""The SQL of search/storage/bulk.py, on the tables of Optuna's schema of 5.0. `ids`: trials that are read."""

from search.common.attributes import CONFIG, CONFIG_HASH, VIOLATION

SCHEMA = "v3.2.0.a"  # as Optuna's migrations call it
USABLE = """
select pg_is_in_recovery() standby, to_regclass('alembic_version') is not null stamped,
 coalesce(has_schema_privilege(current_schema(), 'create'), false) writable,
 array(select n from unnest(cast(:names as text[])) n where to_regclass(n) is null order by n) absent"""
STAMP = """
select s.version_num as version, (select library_version from version_info limit 1) maker
from alembic_version s"""
TRIALS = """
select trial_id, number, cast(state as text), datetime_start, datetime_complete from trials
where study_id = :study and (trial_id > :after or trial_id = any(:also)) order by trial_id"""
WAITING = """
select trial_id, number, cast(state as text), datetime_start, datetime_complete from trials
where study_id = :study and state = 'WAITING' order by trial_id"""
BEAT = """
with beat as (
 insert into trial_heartbeats (trial_id, heartbeat) select trial_id, now() from trials where trial_id = :trial
 on conflict (trial_id) do update set heartbeat = excluded.heartbeat)
select cast(state as text) from trials where trial_id = :trial"""
LOCK_TRIAL = "select cast(state as text) from trials where trial_id = :trial for update"
STUDY = "select 1 from studies where study_id = :study"
RETRY = """
select t.trial_id from trials t join trial_system_attributes a on a.trial_id = t.trial_id
where t.study_id = :study and a.key = :key and a.value_json = :number"""
THESE_TRIALS = """
select trial_id, number, cast(state as text), datetime_start, datetime_complete from trials
where trial_id = any(:ids) order by trial_id"""
ATTRIBUTES = """
select trial_id, '{{' || string_agg(to_json(key) || ':' || value_json, ',') || '}}'
from trial_{kind}_attributes where trial_id = any(:ids) and key not like all(:without) group by trial_id"""
# Attributes (SQL patterns) that a list of trials can do without, most of its bytes: the configuration, and
# what the dashboard alone reads.
BRIEF = [CONFIG, CONFIG_HASH, f"{VIOLATION}%", "dashboard:%", "artifacts:%"]
NUMBER = """case cast({column}_type as text) when 'FINITE' then cast({column} as text) when 'NAN' then 'NaN'
 when 'INF_POS' then 'Infinity' else '-Infinity' end"""
VALUES = f"""
select trial_id, '[' || string_agg({NUMBER.format(column="value")}, ',' order by objective) || ']'
from trial_values where trial_id = any(:ids) group by trial_id"""
STEPS = f"""
select trial_id, '[' || string_agg('[' || step || ',' || {NUMBER.format(column="intermediate_value")} || ']',
 ',' order by step) || ']' from trial_intermediate_values where trial_id = any(:ids) group by trial_id"""
# What is read of trials beside their parameters: rows of (kind, trial, JSON).
QUERIES = {"values": VALUES, "steps": STEPS, **{k: ATTRIBUTES.format(kind=k) for k in ("user", "system")}}
FACTS = {kind: f"select '{kind}', facts.* from ({query}) facts" for kind, query in QUERIES.items()}
# For a few trials one statement costs less than four.
ALL_FACTS = " union all ".join(FACTS.values())
WRITE_PARAMS = """
insert into trial_params (trial_id, param_name, param_value, distribution_json)
select :trial, n, v, d from unnest(cast(:names as text[]), cast(:values as float8[]), cast(:rest as text[]))
 with ordinality as rows (n, v, d, k) order by k on conflict (trial_id, param_name) do nothing"""
WRITE_ATTRIBUTES = """
insert into trial_{kind}_attributes (trial_id, key, value_json)
select :trial, n, v from unnest(cast(:names as text[]), cast(:values as text[])) as rows (n, v)
on conflict (trial_id, key) do update set value_json = excluded.value_json"""
WRITE_STEPS = """
insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
select :trial, n, v, 'FINITE' from unnest(cast(:names as int[]), cast(:values as float8[])) as rows (n, v)
on conflict (trial_id, step) do update
set intermediate_value = excluded.intermediate_value, intermediate_value_type = 'FINITE'"""
