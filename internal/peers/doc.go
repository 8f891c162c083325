// Package peers connects a member to the other members of its cluster. It
// carries raft's messages and snapshots in both directions, guards the peer
// port, and notices when the process of another member is gone. It knows raft's
// message format, but neither the log nor the state machine; package raftnode
// uses it, and it reports back through the Receiver interface.
//
// # How messages travel
//
// The wire protocol is that of etcd's rafthttp. Each member opens two
// long-lived GET requests to every other member and reads messages from the
// responses: one stream for appends, one for everything else. Without a stream,
// a message goes out in a POST of its own. A snapshot always is a POST: the
// message first, then the body, which rafthttp writes to a file as it arrives.
//
// rafthttp trusts every client that reaches it. It panics over a malformed version
// header, over a snapshot message without a snapshot, and over an error of its
// receiver; it connects to whatever address X-PeerURLs names; it reads a body
// to its end. So nothing reaches it directly:
//
//	in    http.Server → guard → rafthttp → callbacks → Receiver
//	out   Send, SendSnapshot → rafthttp → outgoing → the network
//
// The guard checks a request before rafthttp sees it: path, method, identity,
// certificate, size, and pace. The callbacks check every message, because a
// message that arrives on a stream never passes the guard: the stream is the
// response to a request of our own. The round tripper outgoing makes rafthttp's
// requests. It states the identity of this member and connects with the Security
// that the caller chose.
//
// A message from an unknown sender is refused, and the sender is looked up in
// the background. A member that slept through changes of the membership may not
// know its new leader, and must still be able to hear it. Once found, the sender
// becomes a remote: it can be heard and answered, but has no streams.
//
// # How a dead leader is noticed
//
// A LeaderMonitor holds a GET of MonitorPath open with the leader. Nothing is
// ever sent on it. When it breaks, the member dials again. If that dial is
// refused, nothing listens on the leader's port anymore: its process is gone.
// Any other outcome proves nothing. It may be a glitch of the network, or the
// machine may be gone too; raft's election timeout covers those.
//
// # Invariants
//
//	T1  Each MsgSnap ends in exactly one call of SnapshotStatus, and its body is
//	    closed. Without that call raft would never send the follower anything
//	    again.
//	T2  rafthttp gets only URLs that passed memberurl.Validate, and none after Stop. It
//	    panics otherwise.
//	T3  The Receiver gets only messages that ValidateMessage accepts, from a peer
//	    or a remote.
//	T4  mu is never held while rafthttp is called, and no callback takes change.
//	    RemovePeer and Stop wait for rafthttp's goroutines while they hold change;
//	    a callback that waited for it in turn would never return.
//	T5  403 and 410 are answers for removed members only. A rafthttp sender that
//	    gets one of them concludes that it was removed, and stops for good.
//	T6  Stop returns only after every goroutine and handler that may call the
//	    Receiver has ended.
//	T7  This member listens to one process of another member at a time (clones.go).
//	T8  A message is in the name of the member that sent it: of the one that the
//	    request identified, or the one whose stream it came from (stream.go).
//	    Forwarded proposals and reads keep the name of their origin.
//
// # Rejected
//
//   - A transport of our own, over gRPC or plain TCP. rafthttp has carried etcd's
//     traffic for ten years; what it lacks can be put in front of it.
//   - A patched copy of rafthttp. It would have to be patched again for each
//     release.
//   - A relay on loopback in front of rafthttp, for TLS with reloads and
//     revocation. It copies every byte two more times.
//   - Sending a snapshot in an ordinary message. Both sides would hold it in
//     memory as a whole.
//   - Believing X-PeerURLs, as etcd does. Anyone who reaches the port could make
//     this member connect anywhere.
//   - Noticing a dead leader by rafthttp's streams. It reports a broken stream to
//     nobody, and pauses before it dials again.
package peers
