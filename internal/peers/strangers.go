package peers

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/repeat"
)

// strangerRemedy ends both warnings about a member of another cluster.
const strangerRemedy = "each directory belongs to the cluster that it was founded in or joined: compare both with kvd doctor; " +
	"to move one of the members to the other cluster, start it with an empty directory and --join"

// maxStrangers bounds the senders and URLs whose warnings are paced one by one.
const maxStrangers = 64

// strangers paces the warnings about members of other clusters.
type strangers struct {
	mu struct {
		sync.Mutex // held by handlers of the peer port and by connections to others
		paces      map[string]*repeat.Pace
	}
}

// due reports whether the warning about the sender or URL should be given now.
func (s *strangers) due(who, about string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.paces == nil {
		s.mu.paces = make(map[string]*repeat.Pace)
	}
	p := s.mu.paces[who]
	if p == nil && len(s.mu.paces) < maxStrangers {
		p = new(repeat.Pace)
		s.mu.paces[who] = p
	}
	return p != nil && p.Due(time.Now(), about)
}

// warnSender logs that a request of another cluster was refused here.
func (t *Transport) warnSender(claim identity, r *http.Request) {
	if !t.strangers.due(fmt.Sprint(claim.member), types.ID(claim.cluster).String()) {
		return
	}
	t.lg.Warn("refused a member of another cluster",
		zap.Uint64("sender", claim.member), zap.String("sender_address", r.RemoteAddr),
		zap.String("sender_cluster", fmt.Sprintf("%016x", claim.cluster)), zap.String("cluster", fmt.Sprintf("%016x", t.self.cluster)),
		zap.String("data_dir", t.cfg.Dir), zap.String("remedy", strangerRemedy))
}

// warnRefused logs that another member refused a request of this one because it
// belongs to another cluster.
func (t *Transport) warnRefused(r *http.Request, resp *http.Response) {
	theirs, err := types.IDFromString(resp.Header.Get(headerCluster))
	if resp.StatusCode != http.StatusPreconditionFailed || err != nil || uint64(theirs) == t.self.cluster || !t.strangers.due(r.URL.Host, theirs.String()) {
		return
	}
	t.lg.Warn("a member of another cluster refuses this member",
		zap.String("its_address", r.URL.Host), zap.String("its_cluster", fmt.Sprintf("%016x", uint64(theirs))),
		zap.String("cluster", fmt.Sprintf("%016x", t.self.cluster)), zap.String("data_dir", t.cfg.Dir), zap.String("remedy", strangerRemedy))
}
