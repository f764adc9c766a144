"""What runs under memcheck: each function drives one leaf, or the codec, at random from a seed, in memory that is as
large as it says it is. Where the answer is known it is checked, so that it is seen that something ran."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cimport epollkit._sys as _sys
from epollkit._bytes cimport Basin, Spare, basin_free, basin_new, basin_take, spare_give, spare_take
from epollkit._epollset cimport set_add, set_change, set_holds, set_remove, set_renew
from epollkit._http1 cimport (
    DEFAULT_FIELD_BYTES, DEFAULT_FIELDS, DEFAULT_REQUEST_LINE_BYTES, Head, HeadLimits, head_refusal, head_reset,
    parse_head, valid_field_name, valid_field_value,
)
from epollkit._idle cimport IdleSlots, idle_add, idle_collect, idle_take
from epollkit._output cimport (
    Output, output_append, output_append_file, output_cost, output_drop_sent, output_free, output_is_empty, output_new,
    output_peek, output_send,
)
from epollkit._slots cimport (
    NO_SLOT, SLOT_IDLE, SLOT_READY, Slot, SlotList, SlotTable, slot_append, slot_for, slot_invalidate, slot_named,
    slot_of_fd, slot_of_node, slot_recycle, slot_staleness, slot_tag, slot_take, slot_unlink, slots_forget_batches,
    slots_free, slots_init,
)
from epollkit._timers cimport (
    TimerNode, TimerQueue, timers_defer, timers_first_ns, timers_free, timers_remove, timers_set,
)

cdef enum:
    FDS = 1500              # more than a chunk of slots has
    FAR_FD = 20000          # the table fd -> slot has to grow for it
    TAGS = 256              # stale ones that are kept
    FILES = 24

cdef char nobody
cdef PyObject *SOMEBODY = <PyObject *>&nobody           # leaves never look into an endpoint


cdef inline uint32_t draw(uint64_t *state, uint32_t count) noexcept nogil:
    """A number below `count`: xorshift."""
    state[0] ^= state[0] << 13
    state[0] ^= state[0] >> 7
    state[0] ^= state[0] << 17
    return <uint32_t>((state[0] >> 32) % count)


cdef int check(bint holds, str what) except -1:
    if not holds:
        raise AssertionError(what)
    return 0


cdef struct Table:              # everything that a loop has of the leaves, on the heap, so that its edges are watched
    SlotTable slots
    TimerQueue deadlines
    SlotList ready
    uint64_t tags[TAGS]
    uint32_t tag_count
    uint32_t batch


cdef Table *table_new(uint32_t capacity) except NULL:
    cdef Table *table = <Table *>malloc(sizeof(Table))
    check(table != NULL and slots_init(&table.slots, capacity, 32) == 0, "no memory")
    memset(&table.deadlines, 0, sizeof(TimerQueue))
    table.ready.head = table.ready.tail = NO_SLOT
    table.ready.count = table.tag_count = 0
    table.batch = 1
    return table


cdef int table_free(Table *table) except -1:
    check(table.slots.live == 0 and table.ready.count == 0, "somebody is left")
    timers_free(&table.deadlines)
    slots_free(&table.slots)
    free(table)
    return 0


cdef Slot *open_slot(Table *table, int fd) except NULL:
    cdef Slot *slot
    check(slot_take(&table.slots, fd, SOMEBODY, 0, table.batch, &slot) == 0, "no slot")
    return slot


cdef int close_slot(Table *table, Slot *slot) except -1:
    table.tags[table.tag_count % TAGS] = slot_tag(slot)
    table.tag_count += 1
    if slot.flags & SLOT_READY:
        slot_unlink(&table.slots, &table.ready, slot)
    slot_invalidate(&table.slots, slot, table.batch)
    return slot_recycle(&table.slots, slot)


cdef int run_deadlines(Table *table, int64_t now_ns) except -1:
    cdef TimerNode *node
    while timers_first_ns(&table.deadlines) <= now_ns:
        node = table.deadlines.entries[0].node
        if node.due_ns > now_ns:
            timers_set(&table.deadlines, node, node.due_ns)
            continue
        timers_remove(&table.deadlines, node)
        if node.due_ns != 0:
            node.due_ns = 0
            check(slot_of_node(node).endpoint != NULL, "a deadline of nobody's")
    return 0


cdef int use_slot(Table *table, Slot *slot, uint64_t *state, int64_t now_ns) except -1:
    cdef uint32_t what = draw(state, 5)
    check(slot_for(&table.slots, slot_tag(slot)) == slot, "a live tag finds another slot")
    check(slot_named(&table.slots, slot.index, slot.generation) == slot, "a token does")
    check(slot_of_fd(&table.slots, slot.fd) == slot, "an fd does")
    if what == 0:
        timers_set(&table.deadlines, &slot.timer, now_ns + draw(state, 1000) + 1)
    elif what < 3:
        timers_defer(&table.deadlines, &slot.timer, now_ns + draw(state, 1000) + 1 if draw(state, 4) else 0)
    elif slot.flags & SLOT_READY:
        slot_unlink(&table.slots, &table.ready, slot)
    else:
        slot_append(&table.slots, &table.ready, slot)
    return 0


def slots(uint64_t seed, int steps):
    """Slots, the ready list through them, and their deadlines."""
    cdef Table *table = table_new(FDS + 1)
    cdef uint64_t state = seed * 2 + 1
    cdef uint64_t tag
    cdef int64_t now_ns = 1
    cdef int _step, fd
    cdef Slot *slot
    for _step in range(steps):
        fd = FAR_FD if draw(&state, 500) == 0 else <int>draw(&state, FDS)
        slot = slot_of_fd(&table.slots, fd)
        if slot == NULL:
            open_slot(table, fd)
        elif draw(&state, 4) == 0:
            close_slot(table, slot)
        else:
            use_slot(table, slot, &state, now_ns)
        if table.tag_count:
            tag = table.tags[draw(&state, min(table.tag_count, TAGS))]
            check(slot_for(&table.slots, tag) == NULL, "a stale tag finds a slot")
            slot_staleness(&table.slots, tag, table.batch)
        if draw(&state, 16) == 0:
            now_ns += draw(&state, 200)
            table.batch += 1
            run_deadlines(table, now_ns)
        if draw(&state, 2000) == 0:
            slots_forget_batches(&table.slots)
            table.batch = 1
    for fd in [*range(FDS), FAR_FD]:
        if slot_of_fd(&table.slots, fd) != NULL:
            close_slot(table, slot_of_fd(&table.slots, fd))
    closed = table.tag_count
    table_free(table)
    return closed


def idle(uint64_t seed, int count):
    """Who has been idle for longest: more of them than there is room for."""
    cdef Table *table = table_new(count)
    cdef IdleSlots *oldest = <IdleSlots *>malloc(sizeof(IdleSlots))
    cdef uint64_t state = seed * 2 + 1
    cdef Slot *slot
    cdef int fd
    cdef int64_t before_ns = 0
    oldest.first = oldest.count = 0
    for fd in range(count):
        slot = open_slot(table, fd)
        if draw(&state, 3):
            slot.flags |= SLOT_IDLE
            timers_set(&table.deadlines, &slot.timer, draw(&state, 100000) + 1)
    taken = 0
    idle_collect(oldest, &table.slots)
    while True:
        slot = idle_take(oldest, &table.slots)
        if slot == NULL:
            break
        check(slot.timer.due_ns >= before_ns, "not the oldest")
        before_ns = slot.timer.due_ns
        taken += 1
        if draw(&state, 3) == 0:
            close_slot(table, slot)
        elif draw(&state, 2):
            slot.flags &= ~SLOT_IDLE
        else:
            timers_defer(&table.deadlines, &slot.timer, 200000 + taken)
            idle_add(oldest, slot)
    for fd in range(count):
        if slot_of_fd(&table.slots, fd) != NULL:
            close_slot(table, slot_of_fd(&table.slots, fd))
    free(oldest)
    table_free(table)
    return taken


def epollset(uint64_t seed, int steps):
    """The epoll set and what it reports: every tag finds its slot, or is stale."""
    cdef Table *table = table_new(FILES + 1)
    cdef uint64_t state = seed * 2 + 1
    cdef _sys.epoll_event *events = <_sys.epoll_event *>malloc(4 * sizeof(_sys.epoll_event))
    cdef int files[FILES]
    cdef int epoll_fd = _sys.ek_epoll_create()
    cdef int _step, what, at, i, found
    cdef Slot *slot
    told = 0
    for at in range(FILES):
        files[at] = _sys.ek_eventfd()
        set_add(epoll_fd, open_slot(table, files[at]), _sys.EPOLLIN | _sys.EPOLLET)
    for _step in range(steps):
        at = draw(&state, FILES)
        slot = slot_of_fd(&table.slots, files[at])
        what = draw(&state, 8)
        if what == 0:
            set_remove(epoll_fd, slot)
            close_slot(table, slot)
            set_add(epoll_fd, open_slot(table, files[at]), _sys.EPOLLIN | _sys.EPOLLET)
        elif what == 1:
            close_slot(table, slot)
            _sys.ek_close(files[at])
            files[at] = _sys.ek_eventfd()
            set_add(epoll_fd, open_slot(table, files[at]), _sys.EPOLLIN | _sys.EPOLLONESHOT)
        elif what == 2:
            check(set_change(epoll_fd, slot, _sys.EPOLLIN | _sys.EPOLLOUT | _sys.EPOLLET) == 0, "it has left the set")
        elif what == 3:
            check(set_holds(epoll_fd, slot), "it has left the set")
        elif what == 4 and draw(&state, 8) == 0:
            check(set_renew(&table.slots, epoll_fd) == 0, "no new set")
        else:
            _sys.ek_eventfd_add(files[at])
        found = _sys.ek_epoll_wait(epoll_fd, events, 4, 0)
        table.batch += 1
        for i in range(found):
            slot = slot_for(&table.slots, _sys.ek_event_tag(&events[i]))
            check(slot != NULL and _sys.ek_event_mask(&events[i]) & slot.events, "an event that nobody asked for")
            told += 1
    for at in range(FILES):
        close_slot(table, slot_of_fd(&table.slots, files[at]))
        _sys.ek_close(files[at])
    _sys.ek_close(epoll_fd)
    free(events)
    table_free(table)
    return told


cdef bytes made_bytes(uint64_t *state, uint32_t most):
    return bytes([draw(state, 256) for _ in range(draw(state, most) + 1)])


def output(uint64_t seed, int steps, int fd, int peer, int file, bytes content):
    """A queue of bytes and of pieces of a file, given to a socket whose peer reads now and then."""
    cdef uint64_t state = seed * 2 + 1
    cdef Output *queue = output_new(None)
    cdef char *buffer = <char *>malloc(4096)
    cdef const char *data
    cdef ssize_t count
    cdef int step
    cdef uint32_t start, length
    written = bytearray()
    received = bytearray()
    for step in range(steps):
        if draw(&state, 3) == 0:
            piece = made_bytes(&state, 300)
            output_append(queue, piece)
            written += piece
        elif draw(&state, 8) == 0:
            start = draw(&state, len(content) - 1)
            length = draw(&state, len(content) - start) + 1
            output_append_file(queue, _sys.ek_duplicate(file), start, length)
            written += content[start:start + length]
        if not output_is_empty(queue):
            check(output_cost(queue) >= queue.size, "cheaper than its bytes")
            count = output_peek(queue, buffer, draw(&state, 4096) + 1, &data)
            check(count > 0, "nothing to peek at")
            if draw(&state, 4) == 0:            # as TLS does: taken from here, and sent in another form
                count = min(count, <ssize_t>draw(&state, 100) + 1)
                count = _sys.ek_send(fd, data, count)
            else:
                count = output_send(queue, fd, draw(&state, 2000) + 1)
            check(count > 0 or count == -EAGAIN, "not sent")
            output_drop_sent(queue, max(count, <ssize_t>0))
        if draw(&state, 4) == 0 or not step + 1 < steps:
            count = _sys.ek_recv(peer, buffer, 4096)
            while count > 0:
                received += buffer[:count]
                count = _sys.ek_recv(peer, buffer, 4096)
    check(written.startswith(received), "something else was received")
    output_free(queue)                          # with whatever is still in it
    free(buffer)
    return len(received)


def spares(uint64_t seed, int steps):
    """Objects that are used again if nobody has kept them."""
    cdef uint64_t state = seed * 2 + 1
    cdef Spare spare
    cdef Basin basin
    cdef Py_ssize_t room
    cdef bytes data, again
    spare.object = NULL
    spare.room = 0
    basin.given = NULL
    basin_new(&basin, 4096)
    kept = []
    for _ in range(steps):
        data = made_bytes(&state, 2000)
        again = spare_take(&spare, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &room)
        check(again == data and hash(again) == hash(data), "not the same bytes")
        if draw(&state, 4) == 0:
            kept.append(again)
        spare_give(&spare, again, room)
        memset(PyBytes_AS_STRING(<bytes>basin.object), draw(&state, 256), 4096)
        again = basin_take(&basin, 4096)
        check(again == again[:1] * 4096, "not what was read")
        if draw(&state, 4) == 0:
            kept.append(again)
        if len(kept) > 8:
            kept.clear()
    basin_free(&basin)
    Py_XDECREF(spare.object)
    return steps


cdef int parse_block(Head *head, bytes data, Py_ssize_t length, const HeadLimits *limits) except? -1:
    """Of a block that ends with the last byte, so that a look beyond it is seen."""
    cdef uint8_t *block = <uint8_t *>malloc(length)
    memcpy(block, PyBytes_AS_STRING(data), length)
    cdef int answer = parse_head(head, block, length, limits)
    free(block)
    return answer


def codec(bytes data, Py_ssize_t step):
    """A head whole, in pieces of `step` bytes, and in two pieces at every such place. Returns parse_head's answer."""
    cdef Head *head
    cdef HeadLimits limits
    cdef Py_ssize_t at
    cdef int whole, answer
    limits.request_line_bytes = DEFAULT_REQUEST_LINE_BYTES
    limits.fields = DEFAULT_FIELDS
    limits.field_bytes = DEFAULT_FIELD_BYTES
    head = <Head *>malloc(sizeof(Head))
    head_reset(head)
    whole = parse_block(head, data, len(data), &limits)
    look(head, whole)
    head_reset(head)
    answer = 0
    for at in range(1, len(data) + step, step):
        answer = parse_block(head, data, min(at, <Py_ssize_t>len(data)), &limits)
        if answer != 0:
            break
    check(answer == whole, "in pieces it is another head")
    for at in range(1, len(data), step):
        head_reset(head)
        answer = parse_block(head, data, at, &limits)
        if answer == 0:
            answer = parse_block(head, data, len(data), &limits)
        check(answer == whole, "in two pieces it is another head")
    free(head)
    head_field(data)
    return whole


cdef int look(const Head *head, int answer) except -1:
    """Branch on all that is promised to be there."""
    cdef uint32_t total = 0
    cdef uint32_t i
    if answer < 0:
        return check(len(str(head_refusal(head))) > 0, "refused without a reason")
    if answer > 0:
        total = head.consumed + head.method + head.minor_version + head.target_form + head.secure_target
        total += head.keep_alive + head.chunked + head.expect_continue + head.method_name + head.method_name_length
        total += head.target + head.target_length + head.authority + head.authority_length
        total += <uint32_t>head.content_length
        for i in range(head.field_count):
            total += head.fields[i].name + head.fields[i].name_length
            total += head.fields[i].value + head.fields[i].value_length
        return check(total != 0xFFFFFFFF, "impossible")
    return 0


cdef int head_field(bytes data) except -1:
    cdef Py_ssize_t length = min(len(data), 40)
    cdef uint8_t *block = <uint8_t *>malloc(length + 1)
    memcpy(block, PyBytes_AS_STRING(data), length)
    block[length] = 0
    valid_field_value(block, length)
    valid_field_name(block, length)
    free(block)
    return 0


def control(str what):
    """What memcheck must see, or it sees nothing: the leaves used wrongly."""
    cdef SlotTable *table = <SlotTable *>malloc(sizeof(SlotTable))
    cdef Output *queue = output_new(None)
    cdef uint8_t *block
    cdef Head head
    cdef HeadLimits limits
    if what == "uninitialised":             # a table that nobody has set up
        told = "live" if slot_for(table, 0) != NULL else "stale"
    elif what == "overrun":                 # one byte more than there is
        limits.request_line_bytes = limits.fields = limits.field_bytes = 100
        head_reset(&head)
        block = <uint8_t *>malloc(5)
        memcpy(block, b"GET /", 5)
        told = "complete" if parse_head(&head, block, 6, &limits) else "incomplete"
        free(block)
    elif what == "freed":                   # a queue after its end
        output_free(queue)
        told = "empty" if output_is_empty(queue) else "not empty"
        queue = NULL
    else:                                   # a queue that nobody frees
        queue = NULL
        told = "lost"
    output_free(queue)
    free(table)
    return told
