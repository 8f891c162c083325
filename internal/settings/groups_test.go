package settings

import "testing"

// TestEverySettingHasAGroup: each setting is in exactly one section of the
// help, and each section names settings that exist.
func TestEverySettingHasAGroup(t *testing.T) {
	times := make(map[string]int)
	for _, g := range Groups() {
		for _, names := range [][]string{g.Common, g.Rare} {
			for _, name := range names {
				times[name]++
				if settingNamed(name) == nil {
					t.Errorf("group %s names %s, which is not a setting", g.Title, name)
				}
			}
		}
	}
	for i := range table {
		if n := times[table[i].name]; n != 1 {
			t.Errorf("%s is in %d groups of the help, want 1", table[i].name, n)
		}
	}
}
