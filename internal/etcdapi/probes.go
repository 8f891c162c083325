package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Probes answers what health checks ask. It reads like a client, but needs no place and is
// not counted: a node that is merely busy must not look ill.
type Probes struct{ server *Server }

// Probes returns the Probes of the server.
func (s *Server) Probes() Probes { return Probes{s} }

// HasLeader reports whether this node knows of a leader.
func (p Probes) HasLeader() bool { return p.server.opts.Member.HasLeader() }

// IsLearner reports whether this node is a member without a vote.
func (p Probes) IsLearner() bool { return p.server.opts.Member.IsLearner() }

// Alarms returns the names of the alarms of this member that etcd has, too.
func (p Probes) Alarms(ctx context.Context) (names []string) {
	st, err := p.server.opts.Inspector.Status(ctx)
	if err != nil {
		return nil // it is starting: Read says so
	}
	for _, a := range alarmsOf(&st) {
		names = append(names, a.GetAlarm().String())
	}
	return names
}

// Read reads from the store. Nobody is told what it finds, so nobody has to be allowed to
// read it.
func (p Probes) Read(ctx context.Context, serializable bool) error {
	if !p.server.Opened() {
		return rpctypes.ErrNoLeader
	}
	q, err := queryOf(&pb.RangeRequest{Key: []byte{0}, KeysOnly: true})
	if err == nil {
		err = p.server.freshen(ctx, serializable, 0)
	}
	if err == nil {
		_, _, err = p.server.find(ctx, &q)
	}
	if err != nil {
		return rpctypes.Error(p.server.finalError(ctx, err)) // the text alone
	}
	return nil
}
