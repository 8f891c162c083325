package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/pace"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/repeat"
	"github.com/kvd-io/kvd/internal/roster"
)

// bodyRequest asks another member for its state, which must include the entry.
type bodyRequest struct {
	ClusterID uint64 `json:"cluster_id"`
	After     uint64 `json:"after"`
}

const (
	bodyPause = time.Second      // between two rounds of asking all members for a body
	bodyStall = 30 * time.Second // a transfer without any progress ends
)

// bodyFetcher returns what raftnode.Open calls to fill a store from another member.
// It asks until one answers: this member cannot do anything without its state.
func (n *Node) bodyFetcher(ctx context.Context, self, cluster uint64) func([]roster.Member, uint64, string) error {
	return func(members []roster.Member, after uint64, path string) error {
		var warnings repeat.Pace
		for {
			err := errors.New("no other member is known")
			for _, m := range members {
				if m.ID == self {
					continue
				}
				for _, u := range m.PeerURLs {
					if err = n.calls.fetchBody(ctx, u, bodyRequest{ClusterID: cluster, After: after}, path); err == nil {
						n.lg.Info("state received from another member", zap.Uint64("member", m.ID), zap.String("url", u))
						return nil
					}
				}
			}
			if warnings.Due(time.Now(), err.Error()) {
				n.lg.Warn("cannot rebuild the store yet: no other member has sent the state; trying again", zap.Uint64("after", after), zap.Error(err))
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(bodyPause):
			}
		}
	}
}

func (p *peerCaller) fetchBody(ctx context.Context, url string, r bodyRequest, path string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stall := time.AfterFunc(bodyStall, cancel)
	defer stall.Stop()
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(url, "/")+pathBody, bytes.NewReader(body))
	if err != nil {
		return err
	}
	client := *p.client
	client.Timeout = 0 // a body may be large; see bodyStall
	resp, err := p.do(&client, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		data, err := io.ReadAll(io.LimitReader(resp.Body, maxCallBytes))
		if err != nil {
			return err
		}
		return refusal(url, resp.StatusCode, data)
	}
	_, err = datadir.WriteBody(path, pace.Source{R: resp.Body, Timer: stall, Limit: bodyStall})
	return err
}

// body streams this member's state to a member that rebuilds its store.
func (s callServer) body(w http.ResponseWriter, r *http.Request) {
	var in bodyRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCallBytes)).Decode(&in); err != nil || r.Method != http.MethodPost {
		answerCall(w, http.StatusBadRequest, callError{Reason: "bad_member", Detail: "this call is a POST with JSON"})
		return
	}
	m, err := s.n.serving()
	if err == nil {
		err = s.identified(caller{tls: r.TLS, r: r})
	}
	if err == nil && in.ClusterID != m.replica.Membership().ClusterID {
		err = fmt.Errorf("%w: this is cluster %016x, not %016x", roster.ErrBadMember, m.replica.Membership().ClusterID, in.ClusterID)
	}
	if err == nil && s.n.store.Position().Index < in.After {
		err = fmt.Errorf("%w: this member has applied entry %d, not yet entry %d", raftnode.ErrNoLeader, s.n.store.Position().Index, in.After)
	}
	if err != nil {
		answerCall(w, http.StatusConflict, callError{Reason: reasonOf(err), Detail: err.Error()})
		return
	}
	v, err := s.n.store.View()
	if err != nil {
		answerCall(w, http.StatusConflict, callError{Reason: "unknown", Detail: err.Error()})
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	progress := pace.Sink{W: w, Control: http.NewResponseController(w), Limit: bodyStall}
	_, err = v.WriteTo(&pace.Yielding{W: progress, Applied: m.replica.Applied})
	if err = errors.Join(err, v.Close()); err != nil {
		s.n.lg.Warn("could not send the state to another member", zap.Error(err))
		panic(http.ErrAbortHandler) // the receiver must not take it for complete
	}
}
