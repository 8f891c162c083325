package kvstore

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// observed is an observer that lists what it is told.
type observed struct {
	store *Store
	heard []string
}

func (o *observed) Applied(changes []Change, show func()) {
	o.heard = append(o.heard, fmt.Sprintf("at %d:", o.store.Revision()))
	for i := range changes {
		o.heard = append(o.heard, changeText(&changes[i]))
	}
	show()
	o.heard = append(o.heard, fmt.Sprintf("shown %d", o.store.Revision()))
}

func (o *observed) Reset(show func()) {
	show()
	o.heard = append(o.heard, fmt.Sprintf("reset to %d", o.store.Revision()))
}

func changeText(c *Change) string {
	text := fmt.Sprint("revision ", c.Revision)
	for i := range c.Events {
		e := &c.Events[i]
		text += fmt.Sprintf(" deleted %t [%s] previous [%s]", e.Deleted, kvText(&e.KV), kvText(e.Previous))
	}
	return text
}

func TestObserver(t *testing.T) {
	o := &observed{}
	s := openStore(t, engine.NewMemory(), Options{Observer: o})
	defer s.Close()
	o.store = s
	do(t, s, put("b", "1"), txnOf(Txn{Then: []Command{put("c", "2"), deleteRange("b", "c"), put("a", "3")}}), remove("z"), txnOf(Txn{Then: []Command{put("d", ""), put("", "")}}))
	do(t, s, Command{Op: OpTick})
	must(t, s.Restore(bytes.NewReader(bodyOf(t, s))))
	want := []string{
		"at 1:", `revision 2 deleted false ["b"="1" create 2 mod 2 version 1 lease 0] previous [nothing]`,
		`revision 3 deleted false ["c"="2" create 3 mod 3 version 1 lease 0] previous [nothing] deleted true ["b"="" create 0 mod 3 version 0 lease 0] previous [nothing] deleted false ["a"="3" create 3 mod 3 version 1 lease 0] previous [nothing]`,
		"shown 3", "at 3:", "shown 3", "reset to 3",
	}
	if fmt.Sprint(o.heard) != fmt.Sprint(want) {
		t.Errorf("heard %q", o.heard)
	}
}
