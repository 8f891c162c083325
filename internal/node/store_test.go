package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// TestWriteErrors: a client must be able to tell a change that certainly did not
// happen from one whose outcome is open, which only 504 says.
func TestWriteErrors(t *testing.T) {
	for err, want := range map[error]api.Code{
		raftnode.ErrUnknown:    api.Timeout,
		raftnode.ErrNoLeader:   api.NoLeader,
		raftnode.ErrOverloaded: api.Overloaded,
		raftnode.ErrTooLarge:   api.TooLarge,
		raftnode.ErrStopping:   api.Stopping,
		raftnode.ErrDiskStall:  api.NoLeader,
		raftnode.ErrNotLeader:  api.NoLeader,
		errIdentity:            api.NoLeader,
		errSender:              api.NoLeader,
		errors.New("a bug"):    api.Internal,
	} {
		var got *api.Error
		if !errors.As(writeError(fmt.Errorf("wrapped: %w", err)), &got) || got.Code != want {
			t.Errorf("%v: got %v, want %s", err, got, want)
			continue
		}
		unchanged := strings.Contains(got.Detail, "nothing was changed")
		if open := want == api.Timeout || want == api.Internal; unchanged == open {
			t.Errorf("%v: the detail says %q", err, got.Detail)
		}
	}
}

// TestTenure: replicated time passes only while one leader counts it.
func TestTenure(t *testing.T) {
	var own tenure
	now := time.Now()
	for _, c := range []struct {
		term uint64
		at   time.Duration
		want time.Duration
	}{
		{5, 0, 0}, {5, 10 * time.Second, 10 * time.Second}, {5, 15 * time.Second, 5 * time.Second},
		{7, 3600 * time.Second, 0}, {7, 3601 * time.Second, time.Second},
	} {
		if got := own.step(c.term, now.Add(c.at)); got != c.want {
			t.Errorf("in term %d at %v: %v, want %v", c.term, c.at, got, c.want)
		}
	}
}

// observed is a cluster of one with its log.
func observed(t *testing.T, cfg Config) (*testNode, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	if cfg.DataDir == "" {
		url := freeURL(t)
		cfg.ID, cfg.DataDir, cfg.Engine, cfg.ListenPeer = 1, t.TempDir(), "pebble", url
		cfg.Initial = []Peer{{ID: 1, URL: url}}
	}
	cfg.Logger = zap.New(core)
	n := startWith(t, cfg)
	n.awaitReady(t)
	return n, logs
}

func quotaOf(s *kvstore.Settings) int64 { return s.QuotaBytes }

// TestIgnoredSettingsAreNamed: a first value that the cluster did not take is worth a
// warning, one that it has is not.
func TestIgnoredSettingsAreNamed(t *testing.T) {
	settings := kvstore.DefaultSettings()
	settings.QuotaBytes = 1 << 30
	given := []GivenSetting{{Flag: "--quota", Field: "quota_bytes", Value: quotaOf}}
	n, logs := observed(t, Config{Settings: settings, GivenSettings: given})
	if err := n.end(t); err != nil {
		t.Fatal(err)
	}
	ignored := func(logs *observer.ObservedLogs) []observer.LoggedEntry {
		return logs.Filter(func(e observer.LoggedEntry) bool { return strings.HasPrefix(e.Message, "--quota has no effect") }).All()
	}
	if got := ignored(logs); len(got) > 0 {
		t.Errorf("at the first start: %v", got)
	}
	cfg := n.cfg
	cfg.Settings.QuotaBytes = 2 << 30
	_, logs = observed(t, cfg)
	got := ignored(logs)
	if len(got) != 1 || !strings.Contains(got[0].Message, "PUT /v1/settings") || got[0].ContextMap()["in_force"] != int64(1<<30) {
		t.Errorf("at a restart with another quota: %v", got)
	}
}

// TestAlarmsOfTheQuota: refused puts raise no_space and a nearly full store raises
// space_low, in the status and in the log, and both end by themselves.
func TestAlarmsOfTheQuota(t *testing.T) {
	n, logs := observed(t, Config{})
	quota := int64(1 << 20)
	do := func(c *kvstore.Command, want kvstore.Outcome) {
		t.Helper()
		if r, err := n.Do(testContext(t), c, nil); err != nil || r.Outcome != want {
			t.Fatalf("outcome %d, %v; want %d", r.Outcome, err, want)
		}
	}
	put := func(key string, size int) *kvstore.Command {
		return &kvstore.Command{Op: kvstore.OpPut, Key: []byte(key), Value: make([]byte, size)}
	}
	awaitLog := func(message, alarm string) {
		t.Helper()
		eventually(t, message+" "+alarm, func() bool { return logs.FilterMessage(message).FilterField(zap.String("alarm", alarm)).Len() > 0 })
	}
	wantAlarm := func(name string, healthy bool) {
		t.Helper()
		st, err := n.Status(testContext(t))
		if err != nil || len(st.Alarms) != 1 || api.AlarmName(st.Alarms[0]) != name || !strings.Contains(st.Alarms[0], "quota_bytes") {
			t.Fatalf("%v, %v; want %s", st.Alarms, err, name)
		}
		if cs, err := n.ClusterStatus(testContext(t)); err != nil || cs.Healthy != healthy {
			t.Errorf("with %s the cluster's health is %t, %v", name, cs.Healthy, err)
		}
	}
	origin := kvstore.Origin{RequestID: "0123", Client: "10.0.0.1:5"}
	do(&kvstore.Command{Op: kvstore.OpSettings, Settings: &kvstore.SettingsChange{QuotaBytes: &quota}, Origin: origin}, kvstore.OK)
	if got := logs.FilterMessage("settings changed").FilterField(zap.String("client", "10.0.0.1:5")).All(); len(got) != 1 || got[0].ContextMap()["request_id"] != "0123" {
		t.Errorf("the log says of the change: %v", got)
	}
	do(put("a", 900_000), kvstore.OK)
	wantAlarm("space_low", true)
	awaitLog("alarm started", "space_low")
	do(put("b", 200_000), kvstore.NoSpace)
	wantAlarm("no_space", false)
	awaitLog("alarm started", "no_space")
	awaitLog("alarm ended", "space_low")
	do(&kvstore.Command{Op: kvstore.OpDelete, Key: []byte("a")}, kvstore.OK)
	awaitLog("alarm ended", "no_space")
	if st, err := n.Status(testContext(t)); err != nil || len(st.Alarms) != 0 {
		t.Errorf("%v, %v", st.Alarms, err)
	}
}

// TestNoRoomForResultsIsKnownAtTheDoor: while the results that are remembered fill their
// limit, a request with a new idempotency key is refused without an entry in the log.
func TestNoRoomForResultsIsKnownAtTheDoor(t *testing.T) {
	n, _ := observed(t, Config{})
	limit := int64(1 << 20)
	do := func(c kvstore.Command, want kvstore.Outcome) kvstore.Result {
		t.Helper()
		r, err := n.Do(testContext(t), &c, nil)
		if err != nil || r.Outcome != want {
			t.Fatalf("outcome %d (%s), %v; want %d", r.Outcome, r.Detail, err, want)
		}
		return r
	}
	put := func(key string) kvstore.Command {
		c := kvstore.Command{Op: kvstore.OpPut, Key: []byte("a"), Value: make([]byte, 600_000), ReturnPrevious: true}
		if key != "" {
			c.Idempotency = &kvstore.Idempotency{Key: key}
		}
		return c
	}
	do(kvstore.Command{Op: kvstore.OpSettings, Settings: &kvstore.SettingsChange{IdempotencyBytes: &limit}}, kvstore.OK)
	for _, key := range []string{"", "one", "two"} {
		do(put(key), kvstore.OK)
	}
	before := do(put(""), kvstore.OK).Revision
	proposed := func() uint64 {
		t.Helper()
		stats, err := n.member.Load().replica.Stats(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		return stats.ProposalsCommitted
	}
	const refusals = 200 // the leader proposes a little by itself
	from := proposed()
	for range refusals {
		do(put("three"), kvstore.Busy)
	}
	if n := proposed() - from; n >= refusals {
		t.Errorf("%d commands were committed meanwhile", n)
	}
	if r := do(put("one"), kvstore.OK); !r.Replayed || r.Revision >= before {
		t.Errorf("a repeat: replayed %t, revision %d", r.Replayed, r.Revision)
	}
	releasing := put("three")
	releasing.Release = []string{"one"}
	do(releasing, kvstore.Busy) // the key is released after the command was judged
	do(put("three"), kvstore.OK)
}
