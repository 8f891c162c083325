// Package node is one kvd process seen from the cluster: it joins the store
// and the replication layer, finds its place in a cluster when it starts,
// carries out requests, and does the work that a leader does for all members.
//
// # The life of a node
//
// Run locks the data directory, opens the store and answers calls on the peer
// port. A joiner then finds the directory's place: its own log, a new cluster,
// or a member id in a cluster that exists. With that, Run opens the replica,
// and a member serves on top of it until the process stops or the member is
// removed. The joiner ends where the member begins; they share nothing but the
// identity that the joiner found.
//
//	Node    the process: files, listeners, start and stop; the door to requests
//	joiner  from a directory to a place in a cluster
//	member  requests, membership, duties, status, with a replica underneath
//
// # Invariants
//
//	N1  A directory without a log never makes its member vote before the
//	    directory belongs to the member: either the charter of the cluster says
//	    so (founding.go), or the cluster has committed it without this member's
//	    vote. Directories are told apart by their nonces. A lost disk thus cannot
//	    vote twice or forget what it acknowledged.
//	N2  Which member of which cluster a node is never changes once its replica
//	    is open.
//	N3  Requests are carried out only between ready and closing (lifecycle).
//	    Outside of that they are refused, and the refusal is certain.
//	N4  An error other than api.Timeout and api.Internal means that nothing was
//	    changed.
//	N5  A call to another member uses a connection of its own. If the dial is
//	    refused, nothing was sent; on a connection that was kept open, nobody
//	    could tell. Only calls about leases, which may be repeated, keep theirs.
//	N6  What a leader does on its own behalf carries its term, and does nothing
//	    if another leader was elected meanwhile.
//
// # Rejected
//
// Forwarding writes to the leader over HTTP: raft forwards proposals itself,
// and a second hop would add an outcome that nobody can know. Discovery
// through a service outside of the cluster: any member can name the others.
package node
