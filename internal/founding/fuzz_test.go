package founding

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/datadir"
)

// fuzzDir notes what an acceptor keeps.
type fuzzDir struct {
	kept    datadir.Founding
	adopted []*datadir.Charter
}

func (d *fuzzDir) Nonce() string              { return "nonce" }
func (d *fuzzDir) Seed() string               { return "" }
func (d *fuzzDir) Founding() datadir.Founding { return d.kept }

func (d *fuzzDir) KeepFounding(_, _ uint64, _ string, f datadir.Founding) error {
	d.kept = f
	return nil
}

func (d *fuzzDir) Adopt(_, _ uint64, _ string, c *datadir.Charter) error {
	d.adopted = append(d.adopted, c)
	return nil
}

// FuzzRequests hands the messages of founders, as lines of JSON, to one acceptor. A promise
// never goes back and is kept; what is accepted belongs to a promised ballot; one charter is
// adopted, which names this directory; and an answer, read by the founder, is what was kept.
func FuzzRequests(f *testing.F) {
	f.Add(`{"rendezvous_id":7,"step":"prepare","ballot":{"round":1,"member":2}}
{"rendezvous_id":7,"step":"accept","ballot":{"round":1,"member":2},"charter":{"cluster_id":5,"members":[{"id":1,"nonce":"nonce"}]}}
{"rendezvous_id":7,"step":"prepare","ballot":{"round":1,"member":1}}
{"rendezvous_id":7,"step":"adopt","charter":{"cluster_id":5,"members":[{"id":1,"nonce":"nonce"}]}}
{"rendezvous_id":7,"step":"adopt","charter":{"cluster_id":6,"members":[{"id":1,"nonce":"nonce"}]}}`)
	f.Add(`{"rendezvous_id":7,"step":"accept","ballot":{"round":18446744073709551615},"charter":{}}
{"rendezvous_id":7,"step":"prepare","ballot":{"round":3}}
{"rendezvous_id":8,"step":"prepare","ballot":{"round":4}}
{"rendezvous_id":7,"seed":"x","step":"adopt","charter":null}
{"rendezvous_id":7,"Step":"adopt","charter":{"cluster_id":1,"members":[{"id":1}]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		dir := new(fuzzDir)
		a := NewAcceptor(1, 7, "one", dir)
		for line := range strings.Lines(text) {
			var r Request
			if json.Unmarshal([]byte(line), &r) != nil {
				continue
			}
			before, had := dir.kept, len(dir.adopted) > 0
			answer, err := a.Handle(r)
			if err != nil {
				if !reflect.DeepEqual(dir.kept, before) || r.Rendezvous == 7 && r.Seed == "" {
					t.Fatalf("%s: %v", line, err)
				}
				continue
			}
			checkStep(t, line, &r, answer, before, dir, had)
		}
		if len(dir.adopted) == 0 {
			return
		}
		for _, c := range dir.adopted {
			if c.ClusterID != dir.adopted[0].ClusterID || !c.Names(1, "nonce") || a.Chosen() == nil {
				t.Fatalf("%+v is adopted after %+v", c, dir.adopted[0])
			}
		}
	})
}

// checkStep checks what became of one request.
func checkStep(t *testing.T, line string, r *Request, answer Answer, before datadir.Founding, dir *fuzzDir, had bool) {
	kept := dir.kept
	if kept.Promised.Less(before.Promised) || kept.Promised.Less(kept.Accepted) || kept.Accepted.Less(before.Accepted) {
		t.Fatalf("%s: %+v follows %+v", line, kept, before)
	}
	if had && !reflect.DeepEqual(kept, before) {
		t.Fatalf("%s: after a charter was adopted, %+v is kept", line, kept)
	}
	switch granted := answer.Granted; {
	case r.Step == Accept && granted != (!had && r.Charter != nil && !r.Ballot.Less(before.Promised)),
		r.Step == Prepare && granted != (!had && before.Promised.Less(r.Ballot)),
		granted && r.Step == Prepare && kept.Promised != r.Ballot,
		granted && r.Step == Accept && (kept.Accepted != r.Ballot || !reflect.DeepEqual(kept.Charter, r.Charter)),
		!granted && !reflect.DeepEqual(kept, before):
		t.Fatalf("%s: granted %v, kept %+v after %+v", line, granted, kept, before)
	}
	sent, err := json.Marshal(answer)
	var got Answer
	if err != nil || json.Unmarshal(sent, &got) != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(got); err != nil || string(again) != string(sent) || got.Founding.Promised != kept.Promised {
		t.Fatalf("%s is read as %s, %v", sent, again, err)
	}
}
