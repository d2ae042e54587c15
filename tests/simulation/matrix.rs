//! The crash matrix.
use crate::controller::Recovery;
use crate::fault::Misfortune;
use crate::operations::ALL;
use crate::stage::Scene;

#[test]
fn nothing_goes_wrong() {
    for asked in ALL {
        let scene = Scene {
            seed: 1,
            asked: vec![asked],
            misfortune: Misfortune::None,
            recovery: Recovery::Resume,
            meddled: false,
        };
        let started = std::time::Instant::now();
        let verdict = scene.play();
        println!(
            "{asked:?} {} moments {:?}",
            verdict.moments.len(),
            started.elapsed()
        );
        assert!(
            verdict.wrong.is_empty(),
            "{}\n{:#?}",
            verdict.story,
            verdict.wrong
        );
    }
}
