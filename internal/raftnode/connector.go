package raftnode

import (
	"context"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/roster"
)

// connector is the goroutine that keeps the transport's list of peers equal to
// the membership. Changing that list may wait for connections to close, which
// the node loop must not.
type connector struct {
	self      uint64
	lg        *zap.Logger
	transport *peers.Transport
	// latest carries memberships from the node loop. Its capacity is 1, and a
	// newer one replaces one that was not taken yet.
	latest    chan *roster.Membership
	connected map[uint64][]string // peer URLs by member; owned by run
}

func newConnector(self uint64, lg *zap.Logger, t *peers.Transport) *connector {
	return &connector{self: self, lg: lg, transport: t, latest: make(chan *roster.Membership, 1), connected: make(map[uint64][]string)}
}

// tell passes a new membership on. Only the node loop calls it.
func (c *connector) tell(m *roster.Membership) {
	select {
	case <-c.latest: // connect compares with what is connected, so none is missed
	default:
	}
	c.latest <- m
}

func (c *connector) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.transport.Removed():
			// The others no longer send to a removed member, so it may never
			// receive the entry that says so.
			return ErrRemoved
		case <-c.transport.Cloned():
			return fmt.Errorf("%w: another process with a copy of this data directory has been acting as this member for longer, and still is; %s", ErrRefused, oneDirectory)
		case m := <-c.latest:
			c.connect(m)
		}
	}
}

func (c *connector) connect(m *roster.Membership) {
	for id := range c.connected {
		if _, ok := m.Member(id); !ok {
			c.transport.RemovePeer(id)
			delete(c.connected, id)
		}
	}
	for _, mb := range m.Members {
		// Without a URL there is nothing to connect to yet: the start entry of the
		// member will announce one.
		if mb.ID == c.self || len(mb.PeerURLs) == 0 || slices.Equal(c.connected[mb.ID], mb.PeerURLs) {
			continue
		}
		connect := c.transport.AddPeer
		if _, ok := c.connected[mb.ID]; ok {
			connect = c.transport.UpdatePeer
		}
		if err := connect(mb.ID, mb.PeerURLs); err != nil {
			c.lg.Error("cannot connect to a member", zap.Uint64("member", mb.ID), zap.Error(err))
			continue // not noted, so the next membership tries again
		}
		c.connected[mb.ID] = mb.PeerURLs
	}
}
