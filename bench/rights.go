package main

import (
	"context"
	"encoding/base64"
	"net/http"
)

// caller is how the clients of a load say who they are.
type caller struct {
	name        string
	credentials string  // the header Authorization; "" means none, and that rights are disabled
	atLeast     float64 // rate relative to that without rights
}

// judged is a cluster whose rights are enabled and disabled between the rounds.
type judged struct {
	c       *cluster
	root    *kvd
	anybody caller
	callers []caller // with rights enabled
}

// rightsCost compares operations whose clients are judged with the same ones when rights are
// disabled: on the same nodes, because two clusters would differ by more than that.
func rightsCost(ctx context.Context, b *bench) error {
	return b.threeOf(ctx, b.systems[:1], func(clusters []*cluster) error {
		if err := b.fill(ctx, clusters); err != nil {
			return err
		}
		j, err := newJudged(ctx, clusters[0])
		if err != nil {
			return err
		}
		for _, op := range []operation{opPut, opGet} {
			for range b.rounds {
				if err := b.judgedRound(ctx, j, op); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// judgedRound measures each caller between two loads without rights.
func (b *bench) judgedRound(ctx context.Context, j *judged, op operation) error {
	before, err := b.judgedLoad(ctx, j, op, j.anybody)
	if err != nil {
		return err
	}
	for _, who := range j.callers {
		with, err := b.judgedLoad(ctx, j, op, who)
		if err != nil {
			return err
		}
		after, err := b.judgedLoad(ctx, j, op, j.anybody)
		if err != nil {
			return err
		}
		b.report.row("kvd alone: "+op.rowName()+" with "+who.name+" relative to rights disabled, 64 clients", "times", func(w *row) {
			w.More, w.Absolute, w.AtLeast = true, true, who.atLeast
		}).add("kvd", 2*with.rate/(before.rate+after.rate))
		before = after
	}
	return nil
}

func (b *bench) judgedLoad(ctx context.Context, j *judged, op operation, who caller) (sample, error) {
	if err := j.admit(ctx, who); err != nil {
		return sample{}, err
	}
	s, err := b.load(ctx, j.c, op, 64, b.keySpace)
	if err != nil {
		return s, err
	}
	b.say("%s, %s: %.0f/s, p99 %v, %v an operation, errors %v", op, who.name, s.rate, s.p99, s.cpu, s.errors)
	name := "kvd alone: " + op.rowName() + ", 64 clients, " + who.name + ", "
	b.report.row(name+"rate", "1/s", nil).add("kvd", s.rate)
	b.report.row(name+"CPU of all servers", "µs each", nil).add("kvd", us(s.cpu))
	return s, nil
}

// newJudged makes a user who may do what the load does and no more, with a password and a token.
func newJudged(ctx context.Context, c *cluster) (*judged, error) {
	j := &judged{c: c, root: as(c.sys.(*kvd), basic("root:root")), anybody: caller{name: "rights disabled"}}
	var made struct{ Secret string }
	for _, r := range []struct {
		method, path, body string
		answer             any
	}{
		{http.MethodPut, "/v1/auth", `{"enabled":true,"root_password":"root"}`, nil},
		{http.MethodPut, "/v1/roles/load", `{"permissions":[{"access":"readwrite","prefix":"key-"},{"access":"readwrite","key":"probe"}]}`, nil},
		{http.MethodPut, "/v1/users/load", `{"roles":["load"],"password":"load"}`, nil},
		{http.MethodPost, "/v1/tokens", `{"user":"load"}`, &made},
	} {
		if err := j.ask(ctx, r.method, r.path, r.body, r.answer); err != nil {
			return nil, err
		}
	}
	j.callers = []caller{{"a token", "Bearer " + made.Secret, 0.95}, {"name and password", basic("load:load"), 0.9}}
	return j, nil
}

// admit enables or disables rights, and has the load act as the caller.
func (j *judged) admit(ctx context.Context, who caller) error {
	body := `{"enabled":true}`
	if who.credentials == "" {
		body = `{"enabled":false}`
	}
	if err := j.ask(ctx, http.MethodPut, "/v1/auth", body, nil); err != nil {
		return err
	}
	j.c.sys = as(j.root, who.credentials)
	return nil
}

// ask sends a request of root's to the leader.
func (j *judged) ask(ctx context.Context, method, path, body string, answer any) error {
	j.c.sys = j.root
	leader, err := j.c.leader(ctx)
	if err != nil {
		return err
	}
	return j.root.askJSON(ctx, method, j.root.url(j.c.clients[leader], path), body, answer)
}

// as returns the system with other credentials.
func as(k *kvd, credentials string) *kvd {
	other := *k
	other.credentials = credentials
	return &other
}

func basic(userAndPassword string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(userAndPassword))
}
