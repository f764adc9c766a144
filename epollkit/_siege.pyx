"""`Engine`: how users visit, what they ask, and the count of what became of it."""
import errno
from ssl import SSLEOFError, SSLError

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject, visitproc
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cimport cython

cimport epollkit._sys as _sys
from epollkit._buffered cimport STREAM_CORKED, Loop, has_unsent, reserve
from epollkit._connection cimport Connection
from epollkit._histogram cimport buckets_record
from epollkit._http1 cimport DEFAULT_FIELD_BYTES, DEFAULT_REQUEST_LINE_BYTES, MAX_HEAD_FIELDS, head_reset
from epollkit._http1_response cimport (
    BODY_UNTIL_CLOSE, DEFAULT_EXTENSION_BYTES, DEFAULT_TRAILER_BYTES, body_begin, body_take, parse_response_head,
    response_framing, response_reason_text)
from epollkit._tally cimport STATUSES, Tally

from epollkit._checks import checked_number
from epollkit.errors import ConnectError, UsageError

cdef str UNASKED = "bytes that nobody has asked for"
cdef tuple CLOSES = ("fin", "rst", "half", "abandon", "rst-mid-request", "rst-mid-response")    # in the order of Close


# ---------------------------------------------------------------------------------------------------------------------
# A visit: one connection of a user
# ---------------------------------------------------------------------------------------------------------------------

@cython.no_gc               # what it refers to leads back to it while it is open only: see visit()
cdef class Visit(Connection):
    """One connection of the load engine."""

    write_limit = 1 << 62       # a request is as large as its user made it, and there are `depth` of them at most

    def __init__(self):
        raise UsageError("a Visit is made by the load engine")

    cdef int visit(self, visitproc visit, void *argument) except -1:
        cdef int result = Connection.visit(self, visit, argument)
        if result == 0 and self.engine is not None:
            result = visit(<PyObject *>self.engine, argument)
        return result

    cdef int take_open(self) except -1:
        cdef Engine engine = self.engine
        cdef User *user = self.user
        cdef int64_t now_ns = _sys.ek_now_ns()
        if engine.done:
            return self.leave()
        user.flags |= USER_OPEN
        if user.connecting_ns >= engine.counted.epoch_ns:
            buckets_record(&engine.counted.connects, now_ns - user.connecting_ns)
        engine.counted.counts.connections += 1
        engine.counted.note_open(now_ns, 1)
        self.send_due()
        if self.slot != NULL and not user.flags & USER_LEAVES:
            engine.go_on(user, now_ns)
        return 0

    cdef int send_now(self) except -1:
        """Whatever the user has begun and not written yet, in one piece."""
        cdef Loop loop = <Loop>self.loop_link
        if self.state & STREAM_CORKED:
            return self.send_due()              # with all that this upcall writes
        self.cork(loop)
        try:
            self.send_due()
            return self.uncork(loop)
        except BaseException:
            self.cut_short(loop)
            raise

    cdef int send_due(self) except -1:
        cdef Engine engine = self.engine
        cdef User *user = self.user
        cdef bint first = user.sent == 0
        cdef Wire *wire
        cdef char *room
        cdef uint32_t what
        while user.sent < user.count and self.slot != NULL:
            if engine.close == CLOSE_ABANDON or engine.close == CLOSE_RST_MID_REQUEST:
                return self.misuse()
            what = user.ring[(user.first + user.sent) % engine.depth].what
            wire = &engine.wires[what]
            user.sent += 1
            engine.counted.counts.bytes_sent += wire.length
            room = reserve(self, wire.length)
            if room != NULL:
                memcpy(room, wire.data, wire.length)
                (<Loop>self.loop_link).scratch_used += wire.length
            else:
                self.put(wire.data, wire.length, <bytes>engine.prepared[what][0])
        if first:
            self.set_deadline_ns(engine.timeout_ns)
        return self.shut() if engine.close == CLOSE_HALF else 0

    cdef int misuse(self) except -1:
        """Leave in the middle of the request, or as soon as it is said."""
        cdef Engine engine = self.engine
        cdef User *user = self.user
        cdef Wire *wire = &engine.wires[user.ring[user.first].what]
        cdef Py_ssize_t length = wire.length if engine.close == CLOSE_ABANDON else wire.length // 2
        engine.broke_off(user)
        self.put(wire.data, length, None)
        engine.counted.counts.bytes_sent += length
        user.flags |= USER_LEAVES
        if engine.close == CLOSE_ABANDON:
            return self.close_softly(0)
        self.flush()
        return self.reset()

    cdef int reset(self) except -1:
        """End with an RST."""
        if self.slot == NULL:
            return 0
        self.user.flags |= USER_LEAVES
        _sys.ek_reset_on_close(self.slot.fd)
        return self.owner().release(self.slot, None)

    cdef int leave(self) except -1:
        """The end of a connection, as the scenario wants it."""
        if self.slot == NULL:
            return 0
        self.user.flags |= USER_LEAVES
        return self.reset() if self.engine.close == CLOSE_RST or has_unsent(self) else self.close_softly(0)

    cdef int refuse(self, str why) except -1:
        """What the server says is no HTTP/1.1 that we know, or nobody has asked for it: nothing behind it can be
        trusted."""
        cdef Engine engine = self.engine
        cdef User *user = self.user
        user.flags |= USER_BROKE
        if user.count:
            engine.fail_all(user, "protocol", why, _sys.ek_now_ns(), False)
        else:                       # no request has failed
            engine.counted.count_error("protocol", why)
        return self.reset()

    # -- upcalls -------------------------------------------------------------------------------------------------------

    cdef int take_data(self, const char *data, Py_ssize_t length) except -1:
        cdef Engine engine = self.engine
        cdef User *user = self.user
        cdef Py_ssize_t used
        if user.flags & USER_LEAVES:
            return 0
        engine.counted.counts.bytes_received += length
        if engine.close == CLOSE_RST_MID_RESPONSE:
            engine.broke_off(user)
            return self.reset()
        if self.kept is None:
            used = self.consume(data, length)
            if used < length:
                self.kept = bytearray(data[used:length])
            return 0
        self.kept += data[:length]
        used = self.consume(PyByteArray_AS_STRING(self.kept), PyByteArray_GET_SIZE(self.kept))
        self.kept = self.kept[used:] if used < PyByteArray_GET_SIZE(self.kept) else None
        return 0

    cdef Py_ssize_t consume(self, const char *data, Py_ssize_t length) except -1:
        """How much of it is dealt with; the rest is the beginning of a head."""
        cdef Engine engine = self.engine
        cdef User *user = self.user
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef Py_ssize_t used = 0
        cdef int result
        while used < length and self.slot != NULL and not user.flags & USER_LEAVES:
            if not user.flags & USER_IN_BODY:
                if user.sent == 0:
                    self.refuse(UNASKED)
                    break
                user.flags |= USER_IN_ANSWER
                result = parse_response_head(&user.head, <const uint8_t *>data + used, length - used,
                                             &engine.head_limits)
                if result == 0:
                    return used
                if result < 0 or user.head.status == 101:
                    self.refuse(response_reason_text(user.head.reason) if result < 0
                                else "101, which nobody has asked for")
                    break
                used += result
                if user.head.status < 200:          # interim: the answer is yet to come
                    head_reset(&user.head)
                    continue
                body_begin(&user.body, response_framing(&user.head, engine.wires[user.ring[user.first].what].head),
                           user.head.content_length)
                user.flags |= USER_IN_BODY
            if not user.body.done:
                used += self.consume_body(data + used, length - used)
            if user.body.done and user.flags & USER_IN_BODY and self.slot != NULL:
                if user.sent == 1 and used < length:    # said before the next request was: it is no answer to that
                    if user.ring[user.first].begun_ns >= engine.counted.epoch_ns:
                        engine.counted.count_error("protocol", UNASKED)
                    self.reset()
                engine.answered(user, now_ns)
        return length

    cdef Py_ssize_t consume_body(self, const char *data, Py_ssize_t length) except -1:
        cdef Engine engine = self.engine
        cdef Body *body = &self.user.body
        cdef Py_ssize_t used = 0
        cdef Py_ssize_t taken
        while used < length and not body.done:
            taken = body_take(body, <const uint8_t *>data + used, length - used, &engine.body_limits)
            if taken < 0:
                self.refuse(response_reason_text(body.reason))
                return length
            engine.counted.counts.body_bytes += body.payload_length
            if engine.expected_body is not None and body.payload_length:
                self.keep_body(data + used + body.payload, body.payload_length)
            used += taken
        return used

    cdef int keep_body(self, const char *data, Py_ssize_t length) except -1:
        if self.body is None:
            self.body = bytearray()
        self.body += data[:min(length, BODY_KEPT_BYTES - PyByteArray_GET_SIZE(self.body))]
        return 0

    cdef int take_end(self) except -1:
        cdef User *user = self.user
        if user.flags & USER_IN_BODY and user.body.framing == BODY_UNTIL_CLOSE:
            user.head.keep_alive = False
            self.engine.answered(user, _sys.ek_now_ns())
        if self.slot != NULL and has_unsent(self):      # to whom? It will not be answered
            user.flags |= USER_WRITES
            return self.owner().release(self.slot, None)
        return self.close_softly(0)

    cdef int take_error(self, object error) except -1:
        if has_unsent(self):
            self.user.flags |= USER_WRITES
        return 0

    cdef int write_failed(self, int code) except -1:
        self.user.flags |= USER_WRITES
        return Connection.write_failed(self, code)

    cdef int take_deadline(self) except -1:
        """The oldest request has waited as long as it may, and so those behind it will never be answered."""
        cdef User *user = self.user
        user.flags |= USER_BROKE | (USER_WRITES if has_unsent(self) else 0)
        self.engine.fail_all(user, phase_of(user.flags), "timeout", _sys.ek_now_ns(), True)
        return self.reset()

    cdef int take_closed(self, object reason) except -1:
        cdef User *user = self.user
        cdef Engine engine = self.engine
        self.user = NULL
        self.engine = None
        return engine.closed(user, reason)


cdef str phase_of(uint32_t flags):
    """What an open connection is at."""
    return "write" if flags & USER_WRITES else "read" if flags & USER_IN_ANSWER else "first-byte"


cdef str name_of(object error):
    """In a word what a connection ended with."""
    if error is None:
        return "closed"
    if isinstance(error, TimeoutError) and error.errno is None:
        return "timeout"
    if isinstance(error, SSLError):                 # its errno is none
        return "closed" if isinstance(error, SSLEOFError) else error.reason or type(error).__name__
    return errno.errorcode.get(getattr(error, "errno", None), type(error).__name__)


# ---------------------------------------------------------------------------------------------------------------------
# The engine
# ---------------------------------------------------------------------------------------------------------------------

cdef int64_t whole_ns(str name, object seconds, bint may_be_nothing=False) except -1:
    if type(seconds) not in (int, float) or not (0 if may_be_nothing else 1e-9) <= seconds <= 1e6:
        raise UsageError(f"{name} is a number of seconds {'from' if may_be_nothing else 'above'} 0, at most a million, "
                         f"not {seconds!r}")
    return <int64_t>(<double>seconds * 1e9)


cdef class Engine:
    """Ask a server, as `users` users do who ask one request after the other, or at a given rate; and count.

    Args:
        loop: the `epollkit.Loop` to run on. Its `max_connections` must leave room for all users.
        prepared: a list of (wire, address, ssl, server_hostname, head): the bytes of a request, where to send it (as
            `Loop.connect` takes it, numeric), the `ssl.SSLContext` or None, and whether its method is HEAD. A user asks
            them in turn, beginning at his own number, or `random_order`.
        number: requests in all, repetitions: of each user; 0 is no limit.
        delay: seconds; a user waits at random for up to that long between two requests.
        rate: requests a second, planned at equal distances from the start on, whatever the server does; 0: closed loop.
        first_due: seconds from the start to the first planned one, where several engines share a rate.
        pipeline: requests that a connection may have under way. keep_alive: ask more than once on a connection.
        sources: addresses to connect from, in turn. close: how connections end: "fin", "rst", "half", "abandon",
            "rst-mid-request", "rst-mid-response".
        connect_timeout, timeout: seconds for a connect with its TLS handshake, and for an answer.
        statuses: those that are a success; None: below 400. body: bytes that an answer's body has to contain; of a
            longer one the first MiB is looked at.
        seed: of what is random. first_user: the number of the first user, where several engines share the users.

    Belongs to its loop's thread, like all that is on it. `done` is true once everything is over; then `on_done()` is
    called, unless it is None.
    """

    def __cinit__(self, *arguments, **options):
        self.counted = Tally()
        self.resting = {}
        self.stopped_ns = INT64_MAX

    def __init__(self, loop, prepared, *, users, number=0, repetitions=0, delay=0.0, rate=0.0, pipeline=1,
                 keep_alive=True, random_order=False, sources=(), close="fin", connect_timeout=10.0, timeout=30.0,
                 statuses=None, body=b"", seed=0, first_user=0, first_due=0.0):
        if self.loop is not None:
            raise UsageError("this engine is made already")
        if not isinstance(loop, Loop):
            raise UsageError(f"an engine runs on an epollkit.Loop, not on {loop!r}")
        if close not in CLOSES:
            raise UsageError(f"a connection ends by one of {', '.join(CLOSES)}, not by {close!r}")
        self.user_count = checked_number("users", users, 1, 1 << 20)
        self.depth = checked_number("pipeline", pipeline, 1, 1024)
        self.number = checked_number("number", number, 0, 1 << 53)
        self.left = self.user_count * <uint64_t>checked_number("repetitions", repetitions, 0, 1 << 40)
        self.repeats = repetitions > 0
        self.timeout_ns = whole_ns("timeout", timeout)
        self.connect_timeout = whole_ns("connect_timeout", connect_timeout) / 1e9
        self.delay = whole_ns("delay", delay, True) / 1e9
        self.first_due_ns = whole_ns("first_due", first_due, True)
        if type(rate) not in (int, float) or not 0 <= rate <= 1e9:
            raise UsageError(f"rate is a number of requests a second, at most 1e9, not {rate!r}")
        self.rate = rate
        self.close = <Close><int>CLOSES.index(close)
        self.keep_alive = keep_alive and self.close < CLOSE_HALF
        if not self.keep_alive and self.depth > 1:
            raise UsageError("pipeline is for connections that are kept alive and closed in order")
        if self.delay and (self.rate or self.depth > 1):
            raise UsageError("a delay is one between two requests of a user: not with a rate, nor with a pipeline")
        self.random_order = random_order
        self.sources = [(source, 0) if isinstance(source, str) else source for source in sources]
        self.expected_body = bytes(body) or None
        self.random_state = (<uint64_t>checked_number("seed", seed, 0, (1 << 63) - 1) + 1) * 0x9E3779B97F4A7C15u | 1
        for status in range(STATUSES) if statuses is None else statuses:
            self.expected[checked_number("a status", status, 0, STATUSES - 1)] = statuses is not None or status < 400
        self.head_limits.request_line_bytes = DEFAULT_REQUEST_LINE_BYTES
        self.head_limits.field_bytes = DEFAULT_FIELD_BYTES
        self.head_limits.fields = MAX_HEAD_FIELDS
        self.body_limits.extension_bytes = DEFAULT_EXTENSION_BYTES
        self.body_limits.trailer_bytes = DEFAULT_TRAILER_BYTES
        self.prepare(prepared)
        self.first_user = checked_number("first_user", first_user, 0, 1 << 40)
        self.make_users(repetitions)
        self.factory = self.make_visit
        self.loop = loop

    def __dealloc__(self):
        free(self.wires)
        free(self.users)
        free(self.rings)
        free(self.queue)

    cdef int prepare(self, object prepared) except -1:
        cdef uint32_t i
        self.prepared, self.places = [], []
        for wire, address, context, hostname, is_head in prepared:
            if type(wire) is not bytes or not wire:
                raise UsageError(f"a request on the wire is bytes, not {wire!r}")
            self.prepared.append((wire, (address, context, hostname), bool(is_head)))
        self.wire_count = checked_number("requests", len(self.prepared), 1, 1 << 20)
        self.wires = <Wire *>calloc(self.wire_count, sizeof(Wire))
        if self.wires == NULL:
            raise MemoryError()
        for i in range(self.wire_count):
            wire, place, is_head = self.prepared[i]
            if place not in self.places:
                self.places.append(place)
            self.wires[i].data = PyBytes_AS_STRING(wire)
            self.wires[i].length = PyBytes_GET_SIZE(wire)
            self.wires[i].place = self.places.index(place)
            self.wires[i].head = is_head
        return 0

    cdef int make_users(self, uint64_t repetitions) except -1:
        cdef User *user
        cdef uint32_t i
        self.users = <User *>calloc(self.user_count, sizeof(User))
        self.rings = <Asked *>calloc(<size_t>self.user_count * self.depth, sizeof(Asked))
        self.queue = <uint32_t *>calloc(self.user_count, sizeof(uint32_t))
        if self.users == NULL or self.rings == NULL or self.queue == NULL:
            raise MemoryError()
        for i in range(self.user_count):
            user = &self.users[i]
            user.ring = &self.rings[<size_t>i * self.depth]
            user.next = <uint32_t>(self.random() * self.wire_count) if self.random_order \
                else <uint32_t>((self.first_user + i) % self.wire_count)
            user.left = repetitions if repetitions else UINT64_MAX
        return 0

    def make_visit(self):
        """For `Loop.connect`: the visit that it is to open."""
        visit, self.coming = self.coming, None
        return visit

    # -- from outside --------------------------------------------------------------------------------------------------

    def start(self, *, warm_up=False):
        """Let the users begin. warm_up: what happens before measure() is called is not counted, nor limited."""
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef uint32_t i
        if self.started_ns:
            raise UsageError("this engine was started already")
        self.started_ns = now_ns + self.first_due_ns
        self.warming = warm_up
        self.counted.clear(now_ns)
        for i in range(self.user_count):
            self.go_on(&self.users[i], now_ns)

    def measure(self):
        """The warm-up is over: what was begun, or planned, before now is not counted."""
        cdef int64_t now_ns = _sys.ek_now_ns()
        self.planned_from = self.planned_by(now_ns)
        self.warming = False
        self.begun = 0
        self.counted.clear(now_ns)

    def stop(self, grace=0.0):
        """Plan nothing more. What has no answer after `grace` seconds is given up, and counted as unanswered."""
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef int64_t grace_ns = whole_ns("grace", grace, True)
        if self.stopped_ns != INT64_MAX or not self.started_ns:
            return
        self.stopped_ns = now_ns
        self.settle(now_ns)
        if not self.done:
            self.grace = self.loop.call_later(grace_ns / 1e9, self.give_up)

    def give_up(self):
        """What has no answer yet will have none."""
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef uint64_t number
        cdef User *user
        cdef Asked *asked
        cdef uint32_t i
        if self.done:
            return
        for i in range(self.user_count):
            user = &self.users[i]
            while user.count:
                asked = &user.ring[user.first]
                if asked.begun_ns >= self.counted.epoch_ns:
                    self.counted.counts.unanswered += 1
                    buckets_record(&self.counted.recent, now_ns - asked.begun_ns)
                user.first = (user.first + 1) % self.depth
                user.count -= 1
        self.under_way = 0
        if self.rate:
            for number in range(max(self.planned, self.planned_from), self.planned_by(now_ns)):
                self.counted.counts.unanswered += 1
                buckets_record(&self.counted.recent, now_ns - self.due_ns(number))
        self.finish(now_ns)

    @property
    def open(self):
        """How many connections are open now."""
        return self.counted.open_now

    def interval(self):
        """What has happened since the last call: whole numbers by name. Times in nanoseconds; `open` is as of now."""
        return self.counted.since_last()

    def tally(self):
        """All that was counted since the start, or since measure(): a dict for JSON."""
        cdef int64_t now_ns = self.ended_ns if self.ended_ns else _sys.ek_now_ns()
        told = self.counted.all_of_it(now_ns)
        told["planned"] = max(self.planned_by(now_ns), self.planned_from) - self.planned_from if self.rate \
            else told["begun"]
        return told

    # -- what is to be asked -------------------------------------------------------------------------------------------

    cdef int64_t due_ns(self, uint64_t number) noexcept:
        """Open loop: when that request is planned."""
        return self.started_ns + <int64_t>(number * (1e9 / self.rate))

    cdef uint64_t planned_by(self, int64_t now_ns) noexcept:
        """Open loop: how many are planned up to that time, in all."""
        cdef uint64_t count
        if self.rate == 0 or self.started_ns == 0:
            return 0
        now_ns = min(now_ns, self.stopped_ns)
        if now_ns < self.started_ns:
            return 0
        count = <uint64_t>((now_ns - self.started_ns) * (self.rate / 1e9)) + 1
        while count and self.due_ns(count - 1) > now_ns:    # roundings, by one at most
            count -= 1
        while self.due_ns(count) <= now_ns:
            count += 1
        if self.number and not self.warming:
            count = min(count, self.planned_from + self.number)
        return count

    cdef bint exhausted(self) noexcept:
        """Whether nothing may be begun any more, by nobody."""
        if self.warming:
            return self.stopped_ns != INT64_MAX
        if self.rate:
            if self.number and self.planned >= self.planned_from + self.number:
                return True
            return self.stopped_ns != INT64_MAX and self.planned >= self.planned_by(self.stopped_ns)
        if self.stopped_ns != INT64_MAX or (self.number and self.begun >= self.number):
            return True
        return self.repeats and self.left == 0

    cdef bint has_room(self, User *user) noexcept:
        """Whether he can begin another one now."""
        if user.flags & USER_RESTS or user.count == self.depth:
            return False
        if user.count == 0:
            return True
        return user.flags & (USER_OPEN | USER_LEAVES) == USER_OPEN and user.place == self.wires[user.next].place

    cdef int go_on(self, User *user, int64_t now_ns) except -1:
        """Have him begin what he may."""
        if self.rate:
            return self.go_on_planned(user, now_ns)
        while not self.done and self.has_room(user) and not self.exhausted():
            if self.repeats and not self.warming:
                if user.left == 0:
                    return 0
            if self.delay and user.flags & USER_ASKED:
                user.flags &= ~<uint32_t>USER_ASKED
                return self.rest(user, self.delay * self.random())
            user.flags |= USER_ASKED
            self.begin(user, now_ns)
        return 0

    cdef double random(self) noexcept:
        """From 0 to 1: xorshift64*."""
        self.random_state ^= self.random_state >> 12
        self.random_state ^= self.random_state << 25
        self.random_state ^= self.random_state >> 27
        return <double>((self.random_state * 0x2545F4914F6CDD1Du) >> 11) / <double>(<uint64_t>1 << 53)

    cdef int begin(self, User *user, int64_t begun_ns) except -1:
        """He turns to his next request: one more in his ring, and on the wire as soon as it may be."""
        cdef Asked *asked = &user.ring[(user.first + user.count) % self.depth]
        asked.begun_ns = begun_ns
        asked.what = user.next
        user.count += 1
        user.next = <uint32_t>(self.random() * self.wire_count) if self.random_order \
            else user.next + 1 if user.next + 1 < self.wire_count else 0
        self.under_way += 1
        self.begun += 1
        self.counted.counts.begun += begun_ns >= self.counted.epoch_ns
        if self.repeats and not self.warming:
            user.left -= 1
            self.left -= 1
        if user.visit == NULL:
            return self.open_visit(user)
        if user.flags & (USER_OPEN | USER_LEAVES) != USER_OPEN:
            return 0
        if user.place != self.wires[asked.what].place:
            return (<Visit>user.visit).leave()
        return (<Visit>user.visit).send_now()

    cdef int open_visit(self, User *user) except -1:
        cdef Visit visit
        cdef uint64_t number = self.first_user + <uint64_t>(user - self.users)
        user.place = self.wires[user.ring[user.first].what].place
        address, context, hostname = self.places[user.place]
        source = self.sources[number % <uint64_t>len(self.sources)] if self.sources else None
        visit = Visit.__new__(Visit)
        visit.engine = self
        visit.user = user
        user.visit = <PyObject *>visit
        user.sent = 0
        user.flags &= ~<uint32_t>USER_OF_A_VISIT
        head_reset(&user.head)
        user.connecting_ns = _sys.ek_now_ns()
        self.coming = visit
        try:
            self.loop.connect(address, self.factory, timeout=self.connect_timeout, bind=source, ssl=context,
                              server_hostname=hostname, ssl_handshake_timeout=self.connect_timeout)
        except BaseException:
            user.visit = NULL
            raise
        return 0

    # -- open loop -----------------------------------------------------------------------------------------------------

    cdef int go_on_planned(self, User *user, int64_t now_ns) except -1:
        """He has time: for what is due already and found nobody who had, or for what comes."""
        while not self.done and self.has_room(user) and not self.exhausted() and self.queue_count == 0 \
                and self.due_ns(self.planned) <= min(now_ns, self.stopped_ns):
            self.begin_planned(user, now_ns)
        if self.done or not self.has_room(user) or self.exhausted():
            return 0
        self.wait_in_queue(user)
        return self.arm(self.due_ns(self.planned))

    cdef int begin_planned(self, User *user, int64_t now_ns) except -1:
        cdef int64_t due_ns = self.due_ns(self.planned)
        self.planned += 1
        if due_ns >= self.counted.epoch_ns:
            buckets_record(&self.counted.lags, max(now_ns - due_ns, <int64_t>0))
        return self.begin(user, due_ns)

    cdef int wait_in_queue(self, User *user) noexcept:
        if user.flags & USER_WAITS:
            return 0
        user.flags |= USER_WAITS
        self.queue[(self.queue_first + self.queue_count) % self.user_count] = <uint32_t>(user - self.users)
        self.queue_count += 1
        return 0

    cdef int arm(self, int64_t due_ns) except -1:
        if self.pacer is None:
            self.pacer = self.loop.call_later(max(due_ns - _sys.ek_now_ns(), <int64_t>0) / 1e9, self.pace)
        return 0

    def pace(self):
        """What is due now goes to those who have waited longest for something to do."""
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef User *user
        self.pacer = None
        while self.queue_count and not self.done and not self.exhausted():
            if self.due_ns(self.planned) > now_ns:
                return self.arm(self.due_ns(self.planned))
            user = &self.users[self.queue[self.queue_first]]
            self.queue_first = (self.queue_first + 1) % self.user_count
            self.queue_count -= 1
            user.flags &= ~<uint32_t>USER_WAITS
            if not self.has_room(user):         # meanwhile his connection failed
                continue
            self.begin_planned(user, now_ns)
            if self.has_room(user):
                self.wait_in_queue(user)
        self.settle(now_ns)

    # -- what comes of it ----------------------------------------------------------------------------------------------

    cdef int answered(self, User *user, int64_t now_ns) except -1:
        """The oldest request has its answer, whole."""
        cdef Visit visit = <Visit>user.visit
        cdef int64_t begun_ns = user.ring[user.first].begun_ns
        cdef uint16_t status = user.head.status
        cdef bint keep = self.keep_alive and user.head.keep_alive
        cdef uint32_t behind
        user.first = user.first + 1 if user.first + 1 < self.depth else 0
        user.count -= 1
        user.sent = behind = user.sent - 1
        user.failures = 0
        user.flags = user.flags & ~<uint32_t>(USER_IN_BODY | USER_IN_ANSWER) | USER_SERVED
        self.under_way -= 1
        head_reset(&user.head)
        if begun_ns >= self.counted.epoch_ns:
            buckets_record(&self.counted.recent, now_ns - begun_ns)
            self.counted.counts.answered += 1
            self.counted.counts.statuses[status] += 1
            if self.expected[status] and (self.expected_body is None
                                          or visit.body is not None and self.expected_body in visit.body):
                self.counted.counts.successful += 1
            else:
                self.counted.counts.failed += 1
                self.counted.counts.unexpected += 1
                self.counted.count_error("expect", "body" if self.expected[status] else str(status))
        if self.expected_body is not None:
            visit.body = None
        if not keep:
            visit.leave()
        else:
            self.go_on(user, now_ns)
            if behind or user.sent == 0:        # else send_due() has set it
                visit.set_deadline_ns(self.timeout_ns if behind else 0)
        return self.settle(now_ns) if self.under_way == 0 else 0

    cdef int broke_off(self, User *user) noexcept:
        """What he had begun ends here, on purpose."""
        self.under_way -= user.count
        while user.count:
            self.counted.counts.broken_off += user.ring[user.first].begun_ns >= self.counted.epoch_ns
            user.first = (user.first + 1) % self.depth
            user.count -= 1
        user.sent = 0
        return 0

    cdef int fail(self, User *user, str phase, str name, int64_t now_ns, bint waited) except -1:
        """The oldest request has no answer, and will have none. waited: for as long as it may."""
        cdef int64_t begun_ns = user.ring[user.first].begun_ns
        user.first = (user.first + 1) % self.depth
        user.count -= 1
        self.under_way -= 1
        if begun_ns < self.counted.epoch_ns:
            return 0
        self.counted.counts.failed += 1
        if waited:
            self.counted.counts.timed_out += 1
            buckets_record(&self.counted.recent, now_ns - begun_ns)
        return self.counted.count_error(phase, name)

    cdef int fail_all(self, User *user, str phase, str name, int64_t now_ns, bint waited) except -1:
        while user.count:
            self.fail(user, phase, name, now_ns, waited)
        user.sent = 0
        return 0

    cdef int closed(self, User *user, object reason) except -1:
        """His connection is over, or was never made."""
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef uint32_t flags = user.flags
        user.visit = NULL
        user.flags &= ~<uint32_t>USER_OF_A_VISIT
        if flags & USER_OPEN:
            self.counted.note_open(now_ns, -1)
        if self.done or self.loop.closed:
            return 0
        user.failures += 1
        if not flags & USER_OPEN:
            self.counted.counts.connect_failures += 1
            phase = "connect" if isinstance(reason, ConnectError) else "tls"
            name = "timeout" if getattr(reason, "errno", None) == errno.ETIMEDOUT else name_of(reason)
            if user.count:
                self.fail(user, phase, name, now_ns, name == "timeout")
        elif flags & USER_LEAVES or user.count == 0:
            if not flags & USER_BROKE or flags & USER_SERVED:
                user.failures = 0
            self.counted.counts.resent += user.sent  # a server that says close has not looked at what is behind it
            self.counted.counts.reconnects += not flags & USER_LEAVES
        else:
            self.fail_all(user, phase_of(flags), name_of(reason), now_ns, False)
            if flags & USER_SERVED:
                user.failures = 0
        user.sent = 0
        if user.failures and not self.exhausted():
            self.counted.counts.backoffs += 1
            self.rest(user, min(<int64_t>FIRST_BACK_OFF_NS << min(user.failures - 1, <uint32_t>8),
                                LONGEST_BACK_OFF_NS) / 1e9)
        elif user.count:
            self.open_visit(user)
        else:
            self.go_on(user, now_ns)
        return self.settle(now_ns)

    cdef int rest(self, User *user, double seconds) except -1:
        cdef object number = user - self.users
        user.flags |= USER_RESTS
        self.resting[number] = self.loop.call_later(seconds, self.come_back, number)
        return 0

    def come_back(self, number):
        """For a timer: that user has rested."""
        cdef User *user = &self.users[<size_t>number]
        user.flags &= ~<uint32_t>USER_RESTS
        del self.resting[number]
        if user.count and user.visit == NULL:
            self.open_visit(user)
        else:
            self.go_on(user, _sys.ek_now_ns())

    cdef int settle(self, int64_t now_ns) except -1:
        """Is it over?"""
        if self.under_way == 0 and not self.done and self.exhausted():
            return self.finish(now_ns)
        return 0

    cdef int finish(self, int64_t now_ns) except -1:
        cdef uint32_t i
        self.counted.note_open(now_ns, 0)
        self.counted.over = True
        self.ended_ns = now_ns
        self.done = True
        for timer in (self.pacer, self.grace, *self.resting.values()):
            if timer is not None:
                timer.cancel()
        self.pacer = self.grace = None
        self.resting.clear()
        for i in range(self.user_count):
            if self.users[i].visit != NULL and self.users[i].flags & USER_OPEN:
                (<Visit>self.users[i].visit).leave()
        if self.on_done is not None:
            self.loop.call_soon(self.on_done)
        return 0
