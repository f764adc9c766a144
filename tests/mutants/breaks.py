"""The mutants: each takes one guard out of the code, and names the tests that must notice.

`old` occurs exactly once in its file; `tests/test_mutants.py` sees to that. A test is named with its parameters where
one of them is the point.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    breaks: str             # which guard, and what it then no longer keeps away
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutant(name: str, breaks: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, breaks, f"epollkit/{file}", old, new, tuple(f"tests/{test}" for test in tests))


SLOTS = (
    mutant(
        "generation-not-compared", "an event finds whoever has its slot now", "_slots.pxd",
        " or ((slot.generation ^ <uint32_t>(tag >> 32)) & table.generation_mask)):",
        "):",
        "test_scenarios.py::TestAnEventNeverReachesALaterOwner::test_raw",
        "test_scenarios.py::TestAnEventNeverReachesALaterOwner::test_listener"),
    mutant(
        "liveness-not-checked", "an event finds a slot that is free", "_slots.pxd",
        "slot.endpoint == NULL or ((slot.generation ^ <uint32_t>(tag >> 32)) & table.generation_mask)",
        "(slot.generation ^ <uint32_t>(tag >> 32)) & table.generation_mask",
        "test_slots.py::test_who_is_called_in_a_batch"),
    mutant(
        "released-without-a-new-generation", "a slot's next owner looks like its last one", "_slots.pxd",
        "    slot.generation += 1            # the only place where it changes",
        "    # nothing changes",
        "test_scenarios.py::TestAnEventNeverReachesALaterOwner::test_raw",
        "test_scenarios.py::TestAnFdClosedBehindTheLoop::test_a_late_use_of_the_old_token"),
    mutant(
        "generation-begins-anew", "a slot's next owner looks like its first one", "_slots.pxd",
        "    slot.fd = fd\n",
        "    slot.fd = fd\n    slot.generation = 0\n",
        "test_scenarios.py::TestAnEventNeverReachesALaterOwner::test_raw"),
    mutant(
        "closed-without-invalidation", "a registration that has ended is still found by its events", "_core.pyx",
        "        slot_invalidate(&self.slots, slot, self.batch)\n",
        "        if flags & SLOT_OWNS_FD:\n            slot_invalidate(&self.slots, slot, self.batch)\n",
        "test_raw_api.py::TestUnregister::test_events_in_the_batch_at_hand_are_dropped"),
    mutant(
        "deadline-outlives-its-owner", "a slot's next owner inherits the deadline of the last one", "_slots.pxd",
        "    slot.timer.due_ns = 0           # its heap entry, if any, stays for the next owner: see _timers",
        "    # it stays",
        "test_reuse.py::test_nothing_of_it_is_there_for_who_has_its_slot_next",
        "test_stream_timeouts.py::test_a_time_ends_with_its_stream"),
    mutant(
        "token-names-whoever-is-there", "a token of a registration that is gone reaches the slot's next owner",
        "_slots.pxd",
        "    return slot if slot.endpoint != NULL and slot.generation == generation else NULL",
        "    return slot if slot.endpoint != NULL else NULL",
        "test_raw_api.py::TestMasks::test_a_late_re_arm_of_a_oneshot",
        "test_scenarios.py::TestAnFdClosedBehindTheLoop::test_a_late_use_of_the_old_token"),
    mutant(
        "fd-table-ignored", "nobody notices that an fd was closed behind the loop's back", "_core.pyx",
        "        slot = slot_of_fd(&self.slots, fd)\n        if slot != NULL:\n            self.lose(slot)",
        "        slot = NULL\n        if slot != NULL:\n            self.lose(slot)",
        "test_scenarios.py::TestAnFdClosedBehindTheLoop::test_the_number_goes_to_an_accepted_connection"),
    mutant(
        "registered-fd-taken-for-lost", "the kernel is not asked whether an fd is still the same file", "_raw.pyx",
        "        if not slot.flags & SLOT_WATCHED or set_holds(self.epoll_fd, slot):",
        "        if not slot.flags & SLOT_WATCHED:",
        "test_raw_api.py::TestBadInput::test_a_registered_fd"),
)

LOOP = (
    mutant(
        "unfinished-batch-forgotten", "what an exception left of a batch is overwritten by the next one", "_core.pyx",
        "        if self.batch_cursor == self.batch_count:       # else: an exception left the last batch unfinished",
        "        if True:",
        "test_scenarios.py::TestCtrlCInTheMiddleOfABatch::test_the_rest_of_the_batch_is_delivered[turn]"),
    mutant(
        "interrupted-edge-lost", "whoever is interrupted is not called again", "_core.pyx",
        "            if endpoint.slot != NULL:       # it may have stopped before EAGAIN, and its edge is spent\n"
        "                self.make_ready(endpoint.slot, <uint16_t>events)\n",
        "",
        "test_scenarios.py::TestCtrlCInTheMiddleOfABatch::test_the_interrupted_edge_is_not_lost"),
    mutant(
        "edge-dropped-on-the-ready-list", "what is reported of one that waits on the ready list is lost", "_core.pyx",
        "                slot.pending |= <uint16_t>events        # it runs next turn: one budget per turn, not two\n",
        "",
        "test_stream.py::test_two_streams_that_write_to_each_other_do_not_mix_their_bytes"),
    mutant(
        "handler-that-raised-stays", "an exception does not end what it came from", "_core.pyx",
        "        if endpoint.slot != NULL:\n            self.release(endpoint.slot, exception)\n",
        "",
        "test_scenarios.py::TestAnExceptionEndsOneHandlerOnly::test_raw_handler"),
    mutant(
        "reported-twice", "what a handler raised is reported a second time", "_core.pyx",
        "        return self.calls.report(exception, source)",
        "        self.calls.report(exception, source)\n        return self.calls.report(exception, source)",
        "test_scenarios.py::TestAnExceptionEndsOneHandlerOnly::test_raw_handler"),
    mutant(
        "on-close-from-inside-close", "on_close is called in the middle of somebody's call to close()", "_core.pyx",
        "            closings_append(&self.closings, endpoint, reason)\n",
        "            endpoint.on_closed(reason)\n            endpoint.loop_link = NULL\n",
        "test_stream.py::test_on_close_is_never_called_from_inside_close"),
    mutant(
        "calls-outlive-their-stream", "timers and posted calls of a closed stream still run", "_core.pyx",
        "        if flags & SLOT_BOUND_CALLS:\n            self.forget_bound(tag)\n",
        "",
        "test_scenarios.py::TestWhatDiesWithAConnection::test_closed_by_the_handler_that_gave_it_all_that"),
    mutant(
        "half-an-answer-looks-whole", "a connection that ends over something unsent ends in a FIN", "_core.pyx",
        "            if endpoint.owes() and not self.inherited:",
        "            if False:",
        "test_stream.py::test_half_an_answer_never_looks_whole"),
    mutant(
        "early-deadline", "a deadline that was put off fires at its old time", "_core.pyx",
        "            if node.due_ns > now_ns:\n",
        "            if False:\n",
        "test_http_server.py::test_keep_alive_starts_anew_with_each_request"),
    mutant(
        "orphans-for-ever", "a set that reports files of which copies live on is never replaced", "_core.pyx",
        "        if self.orphans >= ORPHANS_TO_REBUILD:",
        "        if False:",
        "test_copies.py::TestDup::test_a_set_that_keeps_reporting_orphans_is_replaced"),
    mutant(
        "no-limit-of-connections", "max_connections is no limit", "_core.pyx",
        "        return self.slots.live - self.slots.unlimited >= <uint32_t>self.max_connections",
        "        return False",
        "test_slots.py::test_max_connections"),
    mutant(
        "child-keeps-the-loop", "a forked child goes on with its parent's epoll set", "loop.py",
        "os.register_at_fork(before=_before_fork, after_in_child=_in_child)",
        "os.register_at_fork(before=_before_fork)",
        "test_copies.py::TestFork::test_the_child_closes_its_copies_and_the_parent_goes_on"),
    mutant(
        "fork-goes-unnoticed", "a child's copy of a descriptor hides that the connection was closed", "loop.py",
        "os.register_at_fork(before=_before_fork, after_in_child=_in_child)",
        "os.register_at_fork(after_in_child=_in_child)",
        "test_copies.py::TestFork::test_the_peer_sees_our_end_although_a_child_holds_a_copy"),
)

CALLS = (
    mutant(
        "inbox-out-of-order", "calls from other threads run in another order than they came", "_calls.pyx",
        "            function, arguments = self.inbox.popleft()",
        "            function, arguments = self.inbox.pop()",
        "test_timers.py::TestFromOtherThreads::test_all_of_them_run_in_each_thread_s_order"),
    mutant(
        "delays-cut-to-milliseconds", "a timer of 0.3 ms is one of 0", "_calls.pyx",
        "    return <int64_t>(<double>min(seconds, LONGEST_DELAY_SECONDS) * 1e9 + 0.999999)      # up: never early",
        "    return <int64_t>(<double>min(seconds, LONGEST_DELAY_SECONDS) * 1e3) * 1000000",
        "test_timers.py::TestNeverEarlyAndNoSpin::test_one_timer"),
    mutant(
        "waits-cut-to-milliseconds", "without epoll_pwait2 a wait of 0.3 ms is one of 0, so the loop spins", "_sys.h",
        "        timeout_ms = (int)((timeout_ns + 999999) / 1000000);",
        "        timeout_ms = (int)(timeout_ns / 1000000);",
        "test_timers.py::TestNeverEarlyAndNoSpin::test_a_kernel_without_epoll_pwait2"),
    mutant(
        "timers-from-a-cached-time", "a timer counts from the last tick, so it is early", "_schedule.pyx",
        "        return self.calls.schedule(_sys.ek_now_ns() + delay, function, arguments)",
        "        return self.calls.schedule(_sys.ek_tick_ns() + delay, function, arguments)",
        "test_timers.py::TestNeverEarlyAndNoSpin::test_twenty_in_a_row"),
    mutant(
        "no-budget-of-timers", "timers that are due keep everybody else waiting", "_calls.pyx",
        "        cdef uint32_t left = min(self.queue.count, <uint32_t>TIMER_BUDGET)",
        "        cdef uint32_t left = self.queue.count",
        "test_timers.py::TestStarvation::test_more_than_a_turn_s_budget_is_due"),
    mutant(
        "no-budget-of-posted-calls", "posted calls keep everybody else waiting", "_calls.pyx",
        "        cdef Py_ssize_t left = min(<Py_ssize_t>len(self.posted), <Py_ssize_t>POSTED_BUDGET)",
        "        cdef Py_ssize_t left = <Py_ssize_t>len(self.posted)",
        "test_timers.py::TestStarvation::test_more_posted_calls_than_a_turn_s_budget"),
)

ACCEPTING = (
    mutant(
        "no-pause-without-descriptors", "a listener that can't accept is reported again and again", "_listener.pyx",
        "        set_remove(loop.epoll_fd, self.slot)\n        try:\n            loop.waiting_for_room",
        "        try:\n            loop.waiting_for_room",
        "test_operations.py::TestAccept::test_without_descriptors_it_rests_a_tenth_of_a_second"),
    mutant(
        "listener-not-looked-up-again", "a factory closes its listener, which goes on accepting", "_listener.pyx",
        "        while left > 0 and self.slot != NULL:       # a handler may close the listener",
        "        while left > 0:",
        "test_listener.py::TestTheFactory::test_one_that_closes_the_listener"),
    mutant(
        "one-dead-connection-ends-the-drain", "an accept that fails for its connection's sake ends the listener",
        "_listener.pyx",
        "            elif not accept_goes_on(-fd):",
        "            else:",
        "test_scenarios.py::TestAConnectionThatDiesInTheQueue::test_the_drain_goes_on"),
    mutant(
        "no-accept-budget", "a storm of newcomers keeps everybody else waiting", "_listener.pyx",
        "min(max(waiting, 1), <int>ACCEPT_BUDGET)",
        "max(waiting, 1)",
        "test_listener.py::TestBudgetsAndLimits::test_the_accept_budget_leaves_the_rest_for_the_next_turn"),
    mutant(
        "evicted-over-a-request", "an idle connection is closed although its next request is here", "_room.pyx",
        "            elif not _sys.ek_has_input(slot.fd):",
        "            else:",
        "test_idle.py::TestWithinABatch::test_who_has_asked_is_not_cut_off"),
)

STREAMS = (
    mutant(
        "drain-cut-short", "one read per edge, however much there is", "_buffered.pyx",
        "                if count < room and not events & MORE_THAN_A_READ and self.slot != NULL \\\n",
        "                if self.slot != NULL \\\n",
        "test_stream.py::test_more_data_than_a_read_then_reset"),
    mutant(
        "short-read-taken-as-drained", "a read that stops at urgent data, or before the end, is the last one",
        "_buffered.pyx",
        "                if count < room and not events & MORE_THAN_A_READ and self.slot != NULL \\\n",
        "                if count < room and self.slot != NULL \\\n",
        "test_stream.py::test_urgent_data_does_not_strand_the_bytes_behind_it"),
    mutant(
        "short-read-of-a-unix-socket", "a read that stops at a passed descriptor is the last one", "_buffered.pyx",
        "                        and self.slot.flags & SLOT_TCP:\n",
        "                        and True:\n",
        "test_stream.py::test_a_descriptor_passed_in_the_middle_does_not_strand_the_bytes_behind_it"),
    mutant(
        "budget-without-a-place-on-the-ready-list", "who stops at the read budget is not called again",
        "_buffered.pyx",
        "                return loop.make_ready(self.slot, <uint16_t>events)",
        "                return 0",
        "test_stream.py::test_a_write_in_on_data_that_finds_the_peer_gone_still_delivers_all_data_before_the_error"),
    mutant(
        "no-read-budget", "one peer that never stops sending keeps everybody else waiting", "_buffered.pyx",
        "            if budget <= 0:\n                return loop.make_ready(self.slot, <uint16_t>events)",
        "            if False:\n                return loop.make_ready(self.slot, <uint16_t>events)",
        "test_stream.py::test_an_endless_sender_gets_one_read_budget_per_turn_and_others_are_served_in_every_turn"),
    mutant(
        "stream-not-looked-up-again", "a handler closes its stream, which reads on", "_buffered.pyx",
        "        while self.slot != NULL and not self.state & (STREAM_READS_NOT | STREAM_RESTS):",
        "        while not self.state & (STREAM_READS_NOT | STREAM_RESTS):",
        "test_scenarios.py::TestAHandlerClosesItsOwnConnection::test_no_second_read"),
    mutant(
        "frames-not-looked-up-again", "a handler closes its stream, and gets the frames behind this one",
        "_stream.pyx",
        "            while self.slot != NULL and not self.state & STREAM_DELIVERS_NOT and options.window",
        "            while not self.state & STREAM_DELIVERS_NOT and options.window",
        "test_stream_frames.py::test_a_stream_that_ends_itself_within_a_batch_of_frames_gets_no_further_one"),
    mutant(
        "half-close-taken-for-a-close", "RDHUP ends a connection whose last bytes are not read", "_buffered.pyx",
        "            if events & INPUT:\n                self.read(loop, events)",
        "            if events & _sys.EPOLLRDHUP:\n                loop.release(self.slot, None)\n"
        "            elif events & INPUT:\n                self.read(loop, events)",
        "test_stream.py::test_half_close_in_the_same_batch_as_the_last_bytes_loses_neither_them_nor_the_reply",
        "test_http_server.py::test_a_pipeline_then_half_close_is_answered_whole_and_then_closed"),
    mutant(
        "end-behind-an-error", "a truncated stream passes for a complete one", "_buffered.pyx",
        "        if self.error:\n            return self.broken(_sys.EPOLLERR)\n",
        "",
        "test_stream.py::test_an_error_that_a_send_consumed_is_not_forgotten_by_the_reader"),
    mutant(
        "stream-reads-so-error-twice", "the second look at an error finds none, and that is believed",
        "_buffered.pyx",
        "        if self.error == 0 and events & _sys.EPOLLERR:",
        "        if events & _sys.EPOLLERR:",
        "test_operations.py::TestStreams::test_a_failed_recv_has_read_the_error_so_nobody_asks_for_it"),
    mutant(
        "sent-twice", "what was gathered and sent is still there when the upcall is over", "_buffered.pyx",
        "            loop.scratch_used = 0\n            sent = _sys.ek_send",
        "            sent = _sys.ek_send",
        "test_stream.py::test_two_streams_that_write_to_each_other_do_not_mix_their_bytes"),
    mutant(
        "written-into-another-s-upcall", "what is written to another stream leaves on this one", "_buffered.pyx",
        "        if self.state & STREAM_CORKED and self.output == NULL:\n            if length <= SCRATCH_PIECE_BYTES",
        "        if self.output == NULL:\n            if length <= SCRATCH_PIECE_BYTES",
        "test_stream.py::test_two_streams_that_write_to_each_other_do_not_mix_their_bytes"),
    mutant(
        "a-file-takes-another-s-bytes", "sendfile() on another stream takes what this one has gathered",
        "_buffered.pyx",
        "            if self.state & STREAM_CORKED:\n                self.spill(<Loop>self.loop_link)",
        "            if True:\n                self.spill(<Loop>self.loop_link)",
        "test_stream_output.py::test_a_file_for_another_stream_takes_nothing_of_what_this_one_has_written"),
    mutant(
        "encrypted-over-another-s-bytes", "a file that one stream encrypts overwrites what another one has gathered",
        "_connection.pyx",
        "output_peek(self.output, room, RECORD_BYTES, &data)",
        "output_peek(self.output, (<Loop>self.loop_link).scratch, RECORD_BYTES, &data)",
        "test_native_handler.py::test_a_file_that_another_sends_encrypted_takes_nothing_of_what_was_gathered"),
    mutant(
        "no-write-limit", "a peer that does not read has everything kept for it", "_buffered.pyx",
        "        if output_cost(output) > output.limit:",
        "        if False:",
        "test_stream.py::test_a_queue_beyond_write_limit_resets_the_connection"),
    mutant(
        "no-write-budget", "a file, and a peer that reads as fast, keep everybody else waiting", "_buffered.pyx",
        "            if budget <= 0:                     # a file, and a peer that reads as fast as we send",
        "            if False:",
        "test_stream_output.py::test_a_peer_that_takes_a_large_file_as_fast_as_it_comes_does_not_starve_the_others"),
    mutant(
        "closing-without-a-deadline", "a peer that never reads keeps a closed connection for ever", "_buffered.pyx",
        "        self.set_deadline_ns(CLOSE_TIMEOUT_NS)\n        if self.state & STREAM_CORKED or has_unsent(self):",
        "        if self.state & STREAM_CORKED or has_unsent(self):",
        "test_stream_timeouts.py::test_a_socket_that_is_full_when_it_is_closed_has_30_seconds_too"),
    mutant(
        "no-lingering", "closing over unread input resets, and destroys the answer", "_buffered.pyx",
        "        if self.state & STREAM_MAY_LINGER and _sys.ek_holds_bytes(self.slot.fd):",
        "        if False:",
        "test_stream.py::test_close_sends_what_is_queued_although_the_peer_goes_on_sending"),
    mutant(
        "lingering-for-ever", "a peer that never stops sending is read after its last answer", "_buffered.pyx",
        "            if count <= 0 or self.reads == LINGER_READS:",
        "            if count <= 0:",
        "test_http_server.py::test_a_refused_peer_that_never_stops_sending_is_not_read_for_ever"),
    mutant(
        "end-forgotten-in-a-pause", "who reads on is not told that the peer is gone", "_buffered.pyx",
        "        if self.slot.flags & SLOT_PEER_CLOSED:\n"
        "            return self.owner().rewatch(self.slot, self.slot.events)\n",
        "",
        "test_stream_flow.py::test_a_unix_peer_that_leaves_while_this_side_is_paused_is_gone_for_good"),
    mutant(
        "no-limit-of-a-frame", "a frame without an end has everything kept for it", "_stream.pyx",
        "    return 0 if length < options.frame_bytes else -1",
        "    return 0",
        "test_stream_frames.py::test_a_frame_that_is_longer_than_its_limit"),
    mutant(
        "rate-limit-without-waiting", "a rate limit grants, and nobody waits for the time of it", "_connection.pyx",
        "        return extras.read_grant if not self.state & STREAM_IN_WAITS else 0",
        "        return extras.read_grant",
        "test_stream_rates.py::test_bytes_come_no_faster_than_the_limit_allows"),
)

TLS = (
    mutant(
        "tls-truncation-believed", "the socket's end passes for TLS's", "_buffered.pyx",
        "        if self.state & STREAM_SECURE:          # an end without TLS's own is none\n"
        "            return self.cut_off()\n",
        "",
        "test_stream_tls.py::test_an_end_is_one_only_if_it_was_said"),
    mutant(
        "tls-end-without-close-notify", "the session takes the socket's end for the peer's", "_tls.pyx",
        "            elif filled == 0 and self.state & TLS_SOCKET_ENDED:\n",
        "            elif False:\n",
        "test_tls.py::test_a_socket_that_ends_without_close_notify_is_an_error"),
    mutant(
        "no-deadline-of-a-handshake", "a peer that does not shake hands is kept for ever", "_connection.pyx",
        "        self.set_deadline_ns(self.extras.shake_ns)\n        self.shake()",
        "        self.shake()",
        "test_stream_tls.py::test_a_handshake_that_takes_too_long"),
    mutant(
        "nobody-s-name-is-checked", "a context that checks names is used without one", "_connector.pyx",
        "    if context.check_hostname and not server_hostname:",
        "    if False:",
        "test_connector.py::TestTls::test_a_unix_socket_needs_a_name_to_check"),
    mutant(
        "endless-answers-of-tls", "what TLS says by itself to one that does not read has no limit", "_connection.pyx",
        "        if tls.has_sealed() > ANSWERS_BYTES:",
        "        if False:",
        "test_stream_tls.py::test_what_tls_answers_to_one_that_does_not_read_is_bounded"),
    mutant(
        "records-lost-in-a-pause", "what came behind the record at which a handler paused is lost", "_connection.pyx",
        "(STREAM_CLOSING | STREAM_ENDED):\n            tls.hold(data, length)\n",
        "(STREAM_CLOSING | STREAM_ENDED):\n",
        "test_stream_tls.py::test_small_records_behind_a_pause_wait_where_they_were_received"),
    mutant(
        "handshake-beyond-the-deadline", "a handshake takes its own time, whatever is left of the connect's",
        "_connector.pyx",
        "            extras.shake_ns = max(<int64_t>1, min(extras.shake_ns, self.deadline_ns - _sys.ek_now_ns()))",
        "            extras.shake_ns = extras.shake_ns",
        "test_connector.py::TestTls::test_a_handshake_has_what_is_left_of_the_time"),
)

CONNECTING = (
    mutant(
        "connector-reads-so-error-twice", "a dead backend is taken for a live one", "_connector.pyx",
        "        code = _sys.ek_take_error(self.slot.fd)\n",
        "        _sys.ek_take_error(self.slot.fd)\n        code = _sys.ek_take_error(self.slot.fd)\n",
        "test_connector.py::TestRefused::test_the_error_is_read_once"),
    mutant(
        "hup-taken-for-a-verdict", "HUP without ERR is taken for the answer to a connect", "_connector.pyx",
        "        if events & _sys.EPOLLHUP and not events & _sys.EPOLLERR:\n",
        "        if False:\n",
        "test_connector.py::TestGoneBeforeWeLook::test_hup_without_an_error_is_no_verdict"),
    mutant(
        "what-came-with-the-connect-is-dropped", "a peer that answered and left in the same event is never heard",
        "_connector.pyx",
        "                loop.open_endpoint(heir, stream_events, events if watched else 0)",
        "                loop.open_endpoint(heir, stream_events, 0)",
        "test_connector.py::TestGoneBeforeWeLook::test_the_answer_is_delivered_in_the_turn_of_the_event"),
    mutant(
        "connected-to-itself", "a client that met its own port is taken for a server", "_connector.pyx",
        "        if self.verdict == 0 and self.met_itself():",
        "        if False:",
        "test_connector.py::TestRefused::test_a_connection_to_itself"),
    mutant(
        "approach-s-deadline-inherited", "the connect's deadline ends the connection that it made", "_core.pyx",
        "        slot.endpoint = <PyObject *>heir\n        self.set_deadline(slot, 0)\n",
        "        slot.endpoint = <PyObject *>heir\n",
        "test_connector.py::TestConnected::test_no_deadline_is_left_over"),
    mutant(
        "answers-for-the-cancelled", "a question whose asker has gone is still waited for", "_connector.pyx",
        "            self.timer = None\n            loop.resolving.pop(self.question, None)\n",
        "            self.timer = None\n",
        "test_connector.py::TestNames::test_an_answer_after_the_cancel"),
    mutant(
        "thread-counted-that-is-not-there", "a resolver that ran out of memory once answers nobody any more",
        "_resolver.py",
        "                except (RuntimeError, MemoryError):     # the system has none",
        "                except RuntimeError:        # the system has none",
        "test_connector.py::TestNames::test_no_thread_to_be_had[MemoryError]"),
    mutant(
        "endless-queue-of-names", "look-ups that wait for a thread have no limit", "_resolver.py",
        "            if self.unanswered >= MOST_THREADS + WAITING_LIMIT:",
        "            if False:",
        "test_connector.py::TestNames::test_so_many_wait_and_no_more"),
)

POOL = (
    mutant(
        "dead-at-the-check-out", "a connection that has ended in this very batch is handed out", "_connection.pyx",
        "        if self.slot == NULL or not self.is_undisturbed():",
        "        if self.slot == NULL:",
        "test_pool.py::TestAtTheCheckOut::test_between_two_batches",
        "test_rest.py::test_a_disturbance_is_noticed_within_the_batch_of_the_check_out"),
    mutant(
        "dead-on-its-way", "a connection that ends between the request for it and the hand-over is handed out",
        "pool.py",
        "        elif member.state in (\"idle\", \"due\"):\n            self._counts[",
        "        elif member.state == \"idle\":\n            self._counts[",
        "test_pool.py::TestAtTheCheckOut::test_in_one_batch"),
    mutant(
        "disturbed-and-kept", "what comes to a connection at rest does not end it", "_connection.pyx",
        "            self.is_undisturbed()\n            return 0\n",
        "            return 0\n",
        "test_rest.py::test_a_disturbance_is_noticed_by_its_event"),
    mutant(
        "given-back-with-its-settings", "a connection's next user inherits pause, rates and watermarks",
        "_connection.pyx",
        "        self.state &= ~<uint32_t>STREAM_OF_USER\n",
        "",
        "test_reuse.py::test_nothing_of_it_is_there_when_a_pool_lends_it_again"),
    mutant(
        "given-back-with-its-calls", "timers of a connection's last user run on the next one's", "_connection.pyx",
        "        if self.slot != NULL:\n            loop.forget_calls(self.slot)\n",
        "",
        "test_reuse.py::test_nothing_of_it_is_there_when_a_pool_lends_it_again"),
    mutant(
        "given-back-unsent", "a connection is kept with bytes that its last user wrote", "_connection.pyx",
        "self.state & ~<uint32_t>STREAM_MAY_REST or has_unsent(self) \\\n",
        "self.state & ~<uint32_t>STREAM_MAY_REST \\\n",
        "test_pool.py::TestGivingBack::test_what_is_not_clean_is_closed[unsent]"),
    mutant(
        "used-after-it-was-given-back", "its last user writes on a connection that is somebody else's",
        "_buffered.pyx",
        "        if self.state & STREAM_RESTS:\n            raise UsageError(",
        "        if False:\n            raise UsageError(",
        "test_rest.py::test_no_call_reaches_a_connection_that_was_given_back"),
    mutant(
        "a-connection-to-somewhere-else", "who waits for one address is given a connection to another", "pool.py",
        "        wanted = next(iter(destination.promised or destination.queue), None)",
        "        wanted = next(iter(destination.promised or self._queue), None)",
        "test_pool.py::TestNobodyStarves::test_a_busy_address_does_not_keep_another_waiting_for_ever"),
    mutant(
        "no-limit-of-a-pool", "max_open is no limit", "pool.py",
        "        return self._open < self._max_open",
        "        return True",
        "test_pool.py::TestLimits::test_who_waits_is_served_first_come_first_served"),
    mutant(
        "endless-queue-of-a-pool", "max_waiting is no limit", "pool.py",
        "        if not first and len(self._queue) > self._max_waiting:",
        "        if False:",
        "test_pool.py::TestLimits::test_too_many_wait"),
    mutant(
        "asked-although-it-was-refused", "a request of which acquire() said that there is no memory gets a connection",
        "pool.py",
        "            self._cancel(request)\n            raise\n",
        "            raise\n",
        "test_pool.py::test_who_is_told_that_there_is_no_memory_has_not_asked"),
    mutant(
        "given-back-twice", "a connection is given back by one who has given it back already", "pool.py",
        "        if member.state != \"out\":",
        "        if False:",
        "test_pool.py::TestGivingBack::test_twice"),
)

HTTP = (
    mutant(
        "request-made-over", "a request that somebody keeps is emptied for the next one", "_httpconn.pyx",
        "    if Py_REFCNT(request) > 1 or connection.settings is None:",
        "    if connection.settings is None:",
        "test_http_objects.py::TestARequestThatIsKept::test_stays_what_it_was"),
    mutant(
        "request-s-head-not-kept", "a request that somebody keeps points to where the next one is received",
        "_httpconn.pyx",
        "        if Py_REFCNT(request) > 1:              # somebody keeps it",
        "        if False:           # somebody keeps it",
        "test_http_objects.py::TestARequestThatIsKept::test_stays_what_it_was"),
    mutant(
        "headers-of-the-last-request", "a request is made of the last one, and has its headers", "_httpconn.pyx",
        "    if request.header_pairs is not None:\n        request.header_pairs = None\n",
        "",
        "test_http_objects.py::TestOneRequestObjectServesMany::test_nothing_is_left_of_the_last_one"),
    mutant(
        "parser-not-reset", "the next request of a pipeline begins with what was read of the last one",
        "_httpconn.pyx",
        "            if used:\n                head_reset(head)\n            result = parse_head",
        "            result = parse_head",
        "test_http_server.py::test_pipelined_requests_are_answered_in_order[100]"),
    mutant(
        "pipeline-without-back-pressure", "requests of a peer that reads no answers are executed",
        "_httpconn.pyx",
        "        return self.slot != NULL and not has_unsent(self) and self.error == 0",
        "        return self.slot != NULL and self.error == 0",
        "test_http_server.py::test_a_pipeline_that_is_not_read_is_not_executed"),
    mutant(
        "no-limit-of-a-body", "limit_request_body is no limit", "_httpconn.pyx",
        "        if head.content_length > self.settings.body_limit:",
        "        if False:",
        "test_http_server.py::test_limit_request_body_is_exact"),
    mutant(
        "chunks-taken-for-requests", "a chunked body, which nobody decodes, is parsed as the next request",
        "_httpconn.pyx",
        "        if head.chunked:\n            return -411",
        "        if False:\n            return -411",
        "test_http_server.py::test_a_refused_request_gets_one_answer_and_nothing_behind_it_runs"
        "[chunked, which needs a length here]"),
    mutant(
        "a-trickle-puts-it-off", "each byte of a head gives its sender another ten seconds", "_httpconn.pyx",
        "        if not self.partial.timed:          # from the head's first byte on: a trickle does not put it off",
        "        if True:",
        "test_http_server.py::test_a_trickle_does_not_put_off_the_deadline_of_a_head"),
)


def refuses(name: str) -> str:
    return f"test_http1_head.py::test_refuses[{name}]"


CODEC = (
    mutant(
        "length-behind-a-coding", "both a Transfer-Encoding and, behind it, a Content-Length", "_http1.pyx",
        "    if head.seen & SEEN_CODING:\n        return refuse(head, LENGTH_AND_CODING, field.name)\n",
        "",
        refuses("Content-Length behind Transfer-Encoding")),
    mutant(
        "two-lengths", "a second Content-Length", "_http1.pyx",
        "    if head.seen & SEEN_LENGTH:\n        return refuse(head, LENGTH_REPEATED, field.name)\n",
        "",
        refuses("Content-Length doubled, unequal")),
    mutant(
        "empty-length", "a Content-Length without a digit", "_http1.pyx",
        "    if field.value_length == 0:\n        return refuse(head, LENGTH_SYNTAX, field.value)\n",
        "",
        refuses("Content-Length empty")),
    mutant(
        "length-that-is-no-number", "a Content-Length with a sign, a comma or a letter", "_http1.pyx",
        "        if not CLASS[digits[i]] & DIGIT:\n            return refuse(head, LENGTH_SYNTAX, field.value + i)\n",
        "",
        refuses("Content-Length with +")),
    mutant(
        "length-that-wraps", "a Content-Length beyond 2^64 is a small one", "_http1.pyx",
        "        overflow = overflow or number > (INT64_MAX - digit) // 10",
        "        overflow = False",
        refuses("Content-Length 2^64+1")),
    mutant(
        "coding-in-http-1-0", "a Transfer-Encoding in HTTP/1.0", "_http1.pyx",
        "    if head.minor_version == 0:\n        return refuse(head, CODING_VERSION, field.name)\n",
        "",
        refuses("Transfer-Encoding in HTTP/1.0")),
    mutant(
        "coding-behind-a-length", "both a Content-Length and, behind it, a Transfer-Encoding", "_http1.pyx",
        "    if head.seen & SEEN_LENGTH:\n        return refuse(head, LENGTH_AND_CODING, field.name)\n",
        "",
        refuses("Content-Length before Transfer-Encoding")),
    mutant(
        "two-codings", "a second Transfer-Encoding field", "_http1.pyx",
        "    if head.seen & SEEN_CODING:\n        return refuse(head, CODING_REPEATED, field.name)\n",
        "",
        refuses("Transfer-Encoding doubled")),
    mutant(
        "empty-coding", "an empty element of a Transfer-Encoding", "_http1.pyx",
        "        if start == stop:\n            return refuse(head, CODING_SYNTAX, field.value + start)\n",
        "",
        refuses("Transfer-Encoding with an empty last element")),
    mutant(
        "chunked-is-not-last", "a Transfer-Encoding that goes on behind chunked", "_http1.pyx",
        "        if head.chunked:\n            return refuse(head, CODING_NOT_LAST, field.value + start)\n",
        "",
        refuses("Transfer-Encoding chunked twice")),
    mutant(
        "unknown-coding", "a transfer coding other than chunked", "_http1.pyx",
        "    return GO_ON if known else refuse(head, CODING_UNKNOWN, field.value)",
        "    return GO_ON",
        refuses("Transfer-Encoding with chunked last")),
    mutant(
        "space-before-the-colon", "a field name with a space behind it, which others read as another name",
        "_http1_fields.pxd",
        "    if data[at] != 0x3A or at == line:  # :\n",
        "    if at > line and data[at] == SPACE and at + 1 < end:\n        at += 1\n"
        "    if data[at] != 0x3A or at == line:  # :\n",
        refuses("space before the colon")),
    mutant(
        "bare-carriage-return", "a line of fields that ends in a carriage return and anything", "_http1_fields.pxd",
        "    if data[at + 1] != LF:\n        return refuse(head, BARE_CR, at)\n    head.consumed = <uint32_t>(at + 2)\n"
        "    head.scanned = head.consumed\n    head.stage = IN_NAME\n",
        "    head.consumed = <uint32_t>(at + 2)\n    head.scanned = head.consumed\n    head.stage = IN_NAME\n",
        refuses("bare CR in a value")),
    mutant(
        "control-bytes-in-values", "DEL in a value, where eight bytes are looked at in one go", "_http1_fields.pxd",
        "        stops = (((word - ones * 0x20) & ~word) | ((flipped - ones) & ~flipped)) & high_bits",
        "        stops = ((word - ones * 0x20) & ~word) & high_bits",
        "test_http1_head.py::test_field_name_and_value_of_every_byte"),
    mutant(
        "two-hosts", "a second Host, written as nearly everybody writes it", "_http1.pyx",
        " or head.seen & SEEN_HOST or head.target_form == TARGET_ABSOLUTE",
        " or head.target_form == TARGET_ABSOLUTE",
        refuses("Host doubled")),
    mutant(
        "no-host", "an HTTP/1.1 request without a Host", "_http1.pyx",
        "    if head.minor_version == 1 and not head.seen & SEEN_HOST:",
        "    if False:",
        refuses("Host missing")),
    mutant(
        "another-host", "a Host that is not the absolute target's", "_http1.pyx",
        "    if head.target_form == TARGET_ABSOLUTE and not same_authority(head, data, host, field.value_length):",
        "    if False:",
        refuses("Host is not the target's")),
    mutant(
        "no-limit-of-fields", "limit_request_fields is no limit", "_http1_fields.pxd",
        "    if at > line and head.field_count >= smaller(limits.fields, MAX_HEAD_FIELDS):",
        "    if at > line and head.field_count >= MAX_HEAD_FIELDS:",
        "test_http1_head.py::test_field_count_limit"),
    mutant(
        "no-limit-of-a-plain-host", "limit_request_field_size is no limit of a Host that is written as usual",
        "_http1.pyx",
        " or at - line > limits.field_bytes:",
        ":",
        "test_http1_head.py::test_field_line_limit_of_a_plain_host"),
    mutant(
        "chunk-size-that-wraps", "a chunk's size beyond 2^63, which another reads as a small one",
        "_http1_response.pyx",
        " or body.left > INT64_MAX >> 4:",
        ":",
        "test_http1_response.py::test_refuses_chunks[size 2^63]"),
    mutant(
        "chunk-longer-than-its-size", "data of a chunk that goes on where its end has to be", "_http1_response.pyx",
        "    row(DATA_CR, CHUNK_DATA_END, {b\"\\r\": DATA_LF})",
        "    row(DATA_CR, CHUNK_DATA_END, {bytes(range(256)): DATA_LF})",
        "test_http1_response.py::test_bodies_with_a_changed_byte"),
    mutant(
        "framing-in-a-trailer", "a trailer that says how long the body was", "_http1_response.pyx",
        "            return body_refuse(body, TRAILER_FORBIDDEN)",
        "            return GO_ON",
        "test_http1_response.py::test_refuses_chunks[trailer Content-Length]",
        "test_http1_response.py::test_random_bodies"),
    mutant(
        "no-limit-of-extensions", "chunk extensions without end", "_http1_response.pyx",
        "        if body.extension_bytes > limits.extension_bytes:",
        "        if False:",
        "test_http1_response.py::test_extension_limit"),
    mutant(
        "answers-to-head-have-bodies", "the body of an answer to HEAD is waited for", "_http1_response.pyx",
        "    if was_head_request or head.status < 200",
        "    if head.status < 200",
        "test_http1_response.py::test_a_response_to_head_has_no_body"),
    mutant(
        "split-answer", "an application's header with a line break in its value", "_http1.pyx",
        "    return skip_value(data, 0, length) == length",
        "    return True",
        "test_http_request_response.py::test_a_control_byte_anywhere_in_a_value_is_refused"),
)

PARTS: Mapping[str, tuple[Mutant, ...]] = {
    "Slots, tags and descriptors": SLOTS,
    "Turns, deadlines and copies": LOOP,
    "Calls and time": CALLS,
    "Accepting": ACCEPTING,
    "Streams": STREAMS,
    "TLS": TLS,
    "Connecting": CONNECTING,
    "Pools": POOL,
    "HTTP connections": HTTP,
    "Request heads": CODEC,
}
MUTANTS = tuple(mutant for part in PARTS.values() for mutant in part)
