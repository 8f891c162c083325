package node

import (
	"io"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// machine lets raftnode drive the store. It exists for the types of the views
// alone: an interface value must not hold a nil *kvstore.View.
type machine struct{ *kvstore.Store }

func (m machine) View() (raftnode.View, error) {
	v, err := m.Store.View()
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (m machine) Durable() (raftnode.View, error) {
	v, err := m.Store.Durable()
	if v == nil || err != nil {
		return nil, err
	}
	return v, nil
}

// ledMachine is the machine of a member, and tells the member's lessor about entries: the
// first one of a term begins or ends an office.
type ledMachine struct {
	machine
	member *atomic.Pointer[member] // nil inside: nothing leads here yet
}

// Apply implements raftnode.StateMachine.
func (m ledMachine) Apply(entries []raftnode.Entry) error {
	err := m.machine.Apply(entries)
	if member := m.member.Load(); member != nil {
		member.leases.lessor.Applied()
	}
	return err
}

// verifyBody checks a snapshot body as Restore would.
func verifyBody(r io.Reader) (raftnode.BodyInfo, error) {
	info, err := kvstore.VerifyBody(r)
	if err != nil {
		return raftnode.BodyInfo{}, err
	}
	return raftnode.BodyInfo{Index: info.Position.Index, Term: info.Position.Term, Bytes: int64(info.Bytes)}, nil
}
