-- For wrk: many requests in one write. `wrk -s pipeline.lua URL -- DEPTH`
local requests

init = function(arguments)
    local one = wrk.format("GET", "/")
    requests = string.rep(one, tonumber(arguments[1]))
end

request = function()
    return requests
end
