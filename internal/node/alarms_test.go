package node

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/repeat"
)

// TestAlarmsAreDocumented: whatever the source can raise has a name in api.Alarms, and
// each name is in the description of the API and in the manual.
func TestAlarmsAreDocumented(t *testing.T) {
	raised := regexp.MustCompile("^([a-z]+_[a-z_]+): ")
	found := 0
	for _, dir := range []string{".", "../raftnode", "../catchup", "../kvstore", "../scrub"} {
		for _, text := range literals(t, dir) {
			if name := raised.FindStringSubmatch(text); name != nil {
				found++
				if !slices.Contains(api.Alarms, name[1]) {
					t.Errorf("%s: %q begins like an alarm that api.Alarms does not list", dir, text)
				}
			}
		}
	}
	if found == 0 {
		t.Error("no alarm was found in the source")
	}
	for _, file := range []string{"../httpapi/openapi.yaml", "../../docs/operations.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range api.Alarms {
			if !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("%s does not name the alarm %s", file, name)
			}
		}
	}
}

// literals returns the strings in the program files of a package.
func literals(t *testing.T, dir string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", dir, len(files), err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				text, _ := strconv.Unquote(lit.Value)
				out = append(out, text)
			}
			return true
		})
	}
	return out
}

// TestMemberAtAnotherURLIsWarned: a member that the cluster looks for elsewhere says so,
// with the remedy, at growing intervals, until the cluster knows its URL.
func TestMemberAtAnotherURLIsWarned(t *testing.T) {
	ms := startCluster(t, 1, memoryEngine)
	m := *ms[0].member.Load()
	core, logs := observer.New(zap.WarnLevel)
	m.lg = zap.New(core)
	var pace repeat.Pace
	now := time.Now()
	m.warnOfOtherURLs(&pace, now)
	if logs.Len() != 0 {
		t.Fatalf("a member at its URL is warned: %v", logs.All())
	}
	moved := *m.cfg
	moved.ListenPeer, moved.AdvertisePeer = "http://127.9.9.9:12379", []string{"http://127.9.9.9:12379"}
	m.cfg = &moved
	for _, wait := range []time.Duration{0, time.Second, repeat.FirstPause} {
		now = now.Add(wait)
		m.warnOfOtherURLs(&pace, now)
	}
	if logs.Len() != 2 {
		t.Fatalf("%d warnings, want 2: %v", logs.Len(), logs.All())
	}
	remedy, _ := logs.All()[0].ContextMap()["remedy"].(string)
	if !strings.Contains(remedy, `PUT http://HOST:PORT/v1/members/1 -d '{"peer_urls":["http://127.9.9.9:12379"]}'`) {
		t.Errorf("the remedy is %s", remedy)
	}
	if _, err := ms[0].UpdateMember(testContext(t), 1, moved.AdvertisePeer, nil); err != nil {
		t.Fatal(err)
	}
	m.warnOfOtherURLs(&pace, now.Add(time.Hour))
	if logs.Len() != 2 {
		t.Errorf("it is warned after the cluster knows: %v", logs.All()[2:])
	}
}

// TestMissingQuorumIsWarned: a member without a leader says for how long, whom it cannot
// reach and where it looked, and what to do.
func TestMissingQuorumIsWarned(t *testing.T) {
	ms := startCluster(t, 3, memoryEngine)
	_ = ms[1].end(t)
	_ = ms[2].end(t)
	m := *ms[0].member.Load()
	core, logs := observer.New(zap.WarnLevel)
	m.lg = zap.New(core)
	eventually(t, "the loss of the connections", func() bool {
		return m.replica.ActiveSince(2).IsZero() && m.replica.ActiveSince(3).IsZero()
	})
	var pace repeat.Pace
	now := time.Now()
	m.warnOfNoLeader(&pace, leaderPatience-1, now)
	if logs.Len() != 0 {
		t.Fatalf("it warns during an election: %v", logs.All())
	}
	m.warnOfNoLeader(&pace, leaderPatience, now)
	m.warnOfNoLeader(&pace, leaderPatience, now.Add(time.Second))
	if logs.Len() != 1 {
		t.Fatalf("%d warnings, want 1", logs.Len())
	}
	fields := logs.All()[0].ContextMap()
	silent, _ := fields["not_reached"].([]any)
	if len(silent) != 2 || silent[0] != "2 at "+ms[1].cfg.ListenPeer || fields["voters"] != int64(3) {
		t.Errorf("the warning has %v", fields)
	}
}
