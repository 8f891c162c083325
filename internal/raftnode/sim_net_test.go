package raftnode

import (
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/peers"
)

// Virtual time is in microseconds.
const (
	micro  int64 = 1
	milli        = 1000 * micro
	second       = 1000 * milli

	simTick         = 100 * milli
	simElection     = 10 // ticks
	electionTimeout = simElection * simTick
)

// span is a range of delays.
type span struct{ min, max int64 }

// network is the model network. Messages between two members may be lost,
// doubled, delayed and reordered; each direction of a link may be blocked.
type network struct {
	delay     span
	loss      float64
	duplicate float64
	reorder   float64 // share of messages that take up to late
	late      int64
	blocked   map[link]bool
	// refuses is the share of messages to dead or blocked members of which
	// the sender is told.
	refuses float64
	// damages is the share of snapshot bodies with a wrong bit; buildFails and
	// spoolFails are the shares of bodies and spools that cannot be written.
	damages, buildFails, spoolFails float64
	// transfer is how long a body takes, beside the delays of a few messages.
	transfer span

	sent  int
	bytes int
	// perType counts messages by type.
	perType map[raftpb.MessageType]int
}

type link struct{ from, to uint64 }

func newNetwork() *network {
	return &network{
		delay:   span{100 * micro, 2 * milli},
		blocked: make(map[link]bool),
		perType: make(map[raftpb.MessageType]int),
		late:    300 * milli,
	}
}

// send sends a message.
func (s *sim) send(n *simNode, m *raftpb.Message) {
	b, err := proto.Marshal(m)
	if err != nil {
		s.violate("marshal %v: %v", m.GetType(), err)
		return
	}
	net := s.net
	net.sent++
	net.bytes += len(b)
	net.perType[m.GetType()]++
	if s.trapMessage(m) {
		return
	}
	s.reachIf(spoolRead, m.GetType() == raftpb.MsgApp && len(m.GetEntries()) > 0 && !n.log.InMemory(m.GetIndex()))
	copies := 1
	if s.chance(net.duplicate) {
		copies = 2
	}
	for range copies {
		s.carry(n, m.GetTo(), b)
	}
}

func (s *sim) carry(n *simNode, to uint64, b []byte) {
	target := s.nodes[to]
	if s.net.blocked[link{n.id, to}] || target == nil || !target.up {
		if s.chance(s.net.refuses) {
			n.unreachable = append(n.unreachable, to) // told at the next tick
		}
		return
	}
	if s.chance(s.net.loss) {
		return
	}
	delay := s.between(s.net.delay)
	if s.chance(s.net.reorder) {
		delay += s.between(span{0, s.net.late})
	}
	from := n.id
	s.after(delay, "deliver", func() { s.deliver(from, to, b) })
}

func (s *sim) deliver(from, to uint64, b []byte) {
	n := s.nodes[to]
	if n == nil || !n.up || s.net.blocked[link{from, to}] {
		return
	}
	m := new(raftpb.Message)
	if err := proto.Unmarshal(b, m); err != nil {
		s.violate("unmarshal: %v", err)
		return
	}
	if err := peers.ValidateMessage(m, to); err != nil {
		if m.GetFrom() == to && (m.GetType() == raftpb.MsgProp || m.GetType() == raftpb.MsgReadIndex) {
			s.reach(batchBounced)
			return // forwarded back to where it came from, after a change of leader
		}
		s.violate("the transport refuses what member %d sent: %v", from, err)
		return
	}
	s.noteMessage(m)
	s.trace(uint64(m.GetType()), from, to, m.GetTerm(), m.GetIndex(), uint64(len(m.GetEntries())))
	s.observeArrival(n, m)
	n.receive(m)
}

// isolate blocks both directions between the member and all others.
func (s *sim) isolate(id uint64) {
	for _, other := range s.order {
		if other != id {
			s.net.blocked[link{id, other}] = true
			s.net.blocked[link{other, id}] = true
		}
	}
}

// rejoin opens the member's links.
func (s *sim) rejoin(id uint64) {
	for _, other := range s.order {
		delete(s.net.blocked, link{id, other})
		delete(s.net.blocked, link{other, id})
	}
}

// partition lets members talk only within their group. Members in no group
// are alone.
func (s *sim) partition(groups ...[]uint64) {
	group := make(map[uint64]int)
	for i, g := range groups {
		for _, id := range g {
			group[id] = i + 1
		}
	}
	clear(s.net.blocked)
	for _, a := range s.order {
		for _, b := range s.order {
			if a != b && (group[a] != group[b] || group[a] == 0) {
				s.net.blocked[link{a, b}] = true
			}
		}
	}
}

func (s *sim) heal() { clear(s.net.blocked) }
