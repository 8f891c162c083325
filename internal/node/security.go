package node

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// errIdentity refuses a caller whose certificate belongs to someone else.
var errIdentity = errors.New("the certificate does not match the claimed identity")

// security is how this node knows other members, for package peers.
func (n *Node) security() peers.Security {
	if n.cfg.TLS == nil {
		return peers.Security{}
	}
	return peers.Security{Secure: n.cfg.TLS.Dial, SecureOnly: !n.cfg.InsecurePeers, Authorize: certs.Names}
}

// caller is who makes a call: the connection that it comes over, nil without
// TLS.
type caller = *tls.ConnectionState

// The calls of members and of those who want to be run under these checks.
// Everybody who gets here has a certificate of the members' authority, which
// is all that asking for the members of a cluster takes.

// fromMember lets in whom the certificate names as a member.
func (n *Node) fromMember(c caller) error {
	if n.cfg.TLS == nil {
		return nil
	}
	return named(c, "a member", n.memberURLs())
}

// fromChanger lets in members, with what they were asked to pass on, and
// those who ask to be added themselves.
func (n *Node) fromChanger(c caller, change raftnode.Change) error {
	err := n.fromMember(c)
	if err == nil || change.Kind != raftnode.AddMember {
		return err
	}
	for _, u := range change.Member.PeerURLs {
		if err := named(c, "the member to be added", []string{u}); err != nil {
			return err
		}
	}
	return nil
}

// fromAdmitted lets in the member that the directory is to be bound to. Where
// it is not known here, Admit says what became of it.
func (n *Node) fromAdmitted(c caller, ms *raftnode.Membership, id uint64) error {
	m, ok := ms.Member(id)
	switch {
	case n.cfg.TLS == nil || ms.Removed[id]:
		return nil
	case !ok:
		return fmt.Errorf("%w: this node does not know of member %d", raftnode.ErrMemberNotFound, id)
	}
	return named(c, fmt.Sprintf("member %d", id), m.PeerURLs)
}

func named(c caller, whom string, urls []string) error {
	if err := certs.Names(c, urls); err != nil {
		return fmt.Errorf("%w (%s): %w", errIdentity, whom, err)
	}
	return nil
}

// memberURLs are the peer URLs of all members: of the initial ones until
// there is a membership.
func (n *Node) memberURLs() (urls []string) {
	if r := n.raft.Load(); r != nil {
		for _, m := range r.Membership().Members {
			urls = append(urls, m.PeerURLs...)
		}
	}
	if len(urls) == 0 {
		for _, p := range n.cfg.Initial {
			urls = append(urls, p.URL)
		}
	}
	return urls
}

// checkPeerURLs refuses URLs under which a member would be reached in another
// way than the others, or in the clear where strangers hear it.
func (n *Node) checkPeerURLs(urls []string) error {
	for _, u := range urls {
		secure := strings.HasPrefix(u, "https:")
		switch {
		case n.cfg.TLS == nil && secure:
			return fmt.Errorf("%w: %s is with TLS, but the members of this cluster talk without it", raftnode.ErrBadMember, u)
		case n.cfg.TLS != nil && !secure && !n.cfg.InsecurePeers:
			return fmt.Errorf("%w: %s is without TLS, but the members of this cluster talk with it; use https://", raftnode.ErrBadMember, u)
		case !secure && !n.cfg.InsecurePeers && !onThisMachine(u):
			return fmt.Errorf("%w: %s is without TLS beyond this machine; set up TLS for members, "+
				"or start all of them with --insecure-peers if nobody else can reach that network", raftnode.ErrBadMember, u)
		}
	}
	return nil
}

func onThisMachine(text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// secureListener puts TLS on the peer listener where its URL asks for it.
func (n *Node) secureListener(l net.Listener, scheme string) (net.Listener, error) {
	switch {
	case scheme != "https":
		return l, nil
	case n.cfg.TLS == nil:
		return nil, fmt.Errorf("%w: %s needs certificates", ErrConfig, n.cfg.ListenPeer)
	}
	return n.cfg.TLS.Listen(l), nil
}

// refusedByServer reports whether the error says that the other side did not
// like the certificate: with TLS 1.3 it comes with the first read, after the
// request was written, but no request was looked at. crypto/tls has no type
// for it that others can see.
func refusedByServer(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate")
}

// sparseLog passes on one line a second of what an http.Server says, and how
// many there were: a member that is refused tries again many times a second.
type sparseLog struct {
	lg *zap.Logger
	mu struct {
		sync.Mutex
		next    time.Time
		dropped int
	}
}

// Write implements io.Writer.
func (s *sparseLog) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Before(s.mu.next) {
		s.mu.dropped++
		return len(line), nil
	}
	s.lg.Warn(string(bytes.TrimSpace(line)), zap.Int("more_before", s.mu.dropped))
	s.mu.next, s.mu.dropped = now.Add(time.Second), 0
	return len(line), nil
}
