-- Sends the requests of a file round and round, as they stand; prints one line of JSON at the end.
--   wrk … -s wrk.lua URL -- FILE         FILE: each request as its length, a newline, its bytes
-- Nothing is looked at per answer but what wrk does itself (status above 399, socket errors): a response
-- callback would make the load generator the bottleneck. The caller checks the rest on the server.
local list, count, position = {}, 0, nil

function init(args)
  local file = assert(io.open(args[1], "rb"))
  while true do
    local size = file:read("*n")
    if not size then break end
    file:read(1)
    count = count + 1
    list[count] = file:read(size)
  end
  file:close()
end

function request()
  -- wrk asks for one request before it starts, to count its parts, and never sends it: so the first twice.
  position = position and position % count + 1 or 0
  if position == 0 then return list[1] end
  return list[position]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "bytes": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "max_us": %d, ' ..
    '"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\n',
    summary.requests, summary.bytes, summary.duration,
    latency:percentile(50), latency:percentile(99), latency.max,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
