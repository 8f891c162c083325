package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/roster"
)

// FuzzPeerCalls sends arbitrary bodies to a call, and arbitrary answers to a caller. A change
// arrives as encoding/json reads it, or not at all; a refusal means the same to the caller as
// to the member that refuses; and what no member sends leaves the outcome open.
func FuzzPeerCalls(f *testing.F) {
	change, err := json.Marshal(&roster.Change{Kind: roster.AddMember, Member: roster.Member{ID: 4, PeerURLs: []string{"http://a:1"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(change), uint8(0), "why", 200)
	f.Add(`{"kind":"remove","KIND":"add","member":{"id":-1}}`, uint8(5), "\xff\n", 409)
	f.Add(`{"reason":"no_leader","detail":"x"}`, uint8(11), "", 503)
	f.Add(`{"reason":"unknown"} {`, uint8(99), "<&>", 401)
	f.Add(`null`, uint8(16), "x", 502)
	names := slices.Sorted(maps.Keys(reasons))
	f.Fuzz(func(t *testing.T, text string, which uint8, detail string, status int) {
		var got *roster.Change
		why := error(nil)
		if int(which) < len(names) {
			why = fmt.Errorf("%s: %w", detail, reasons[names[which]])
		}
		h := serveCall(func(_ context.Context, _ caller, c roster.Change) (roster.Member, error) {
			got = &c
			return c.Member, why
		})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, pathChange, strings.NewReader(text)))
		checkArrival(t, text, got, w)
		if got != nil && why != nil {
			back := refusal("http://a", w.Code, w.Body.Bytes())
			if w.Code == http.StatusOK || !errors.Is(back, reasons[names[which]]) || back.Error() != string([]rune(why.Error())) {
				t.Fatalf("%v is answered %d and comes back as %v", why, w.Code, back)
			}
		}
		// The other end may be anything.
		err := refusal("http://a", status, []byte(text))
		known := slices.ContainsFunc(names, func(n string) bool { return errors.Is(err, reasons[n]) })
		var e callError
		_, told := reasons[e.Reason]
		if json.Unmarshal([]byte(text), &e) == nil {
			_, told = reasons[e.Reason]
		}
		if known != told || !known && !errors.Is(err, raftnode.ErrUnknown) {
			t.Fatalf("%d %q is %v", status, text, err)
		}
	})
}

// checkArrival compares what a handler got with what was sent.
func checkArrival(t *testing.T, text string, got *roster.Change, w *httptest.ResponseRecorder) {
	var want roster.Change
	err := json.NewDecoder(strings.NewReader(text)).Decode(&want)
	if (got != nil) != (err == nil && len(text) <= maxCallBytes) || got != nil && !reflect.DeepEqual(*got, want) {
		t.Fatalf("%q arrives as %+v, want %+v, %v", text, got, want, err)
	}
	if !json.Valid(w.Body.Bytes()) || got == nil && w.Code != http.StatusBadRequest {
		t.Fatalf("%q is answered with %d %q", text, w.Code, w.Body)
	}
}
