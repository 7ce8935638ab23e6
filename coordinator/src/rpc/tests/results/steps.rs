//! Curves of training steps, of finished and running phases.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_of_all_training_phases_have_curves() {
    let Finished { coordinator, mut client, .. } = finished(&[], |_| {}).await;
    let job = v1::GetStepsRequest { job_id: JOB.into(), ..Default::default() };
    let steps = client.get_steps(job.clone()).await.unwrap().into_inner();
    let phases: Vec<_> = steps.phases.iter().map(|phase| phase.phase.as_str()).collect();
    assert_eq!(
        phases,
        ["r00.sft", "r01.reward.train", "r01.policy.train", "r02.reward.train", "r02.policy.train"]
    );
    for phase in &steps.phases {
        assert_eq!((phase.steps, phase.steps_done, phase.running), (2, 2, false));
        assert_eq!(
            (phase.curves[0].metric.as_str(), phase.curves[0].mean.as_slice()),
            ("loss", &[1.0, 0.5][..])
        );
    }
    let one = v1::GetStepsRequest {
        phases: vec!["r01.policy.train".into()],
        metrics: vec!["loss".into()],
        after_step: 1,
        max_points: 2,
        ..job.clone()
    };
    let one = client.get_steps(one).await.unwrap().into_inner();
    assert_eq!((one.phases.len(), one.phases[0].step.as_slice()), (1, &[2][..]));
    for (bad, field) in [
        (v1::GetStepsRequest { phases: vec!["r01.policy.generate".into()], ..job.clone() }, "phases"),
        (v1::GetStepsRequest { max_points: 1, ..job.clone() }, "max_points"),
        (v1::GetStepsRequest { metrics: vec![String::new(); 65], ..job.clone() }, "metrics"),
        (v1::GetStepsRequest { page_token: "x".into(), ..job }, "page_token"),
    ] {
        assert_eq!(violation(&client.get_steps(bad).await.unwrap_err()), field);
    }
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_of_many_phases_are_paged() {
    let long: &[Edit] = &[|spec| spec.rounds = Some(33)];
    let Finished { coordinator, mut client, .. } = finished(long, |_| {}).await;
    let mut request = v1::GetStepsRequest { job_id: JOB.into(), ..Default::default() };
    let (mut phases, mut pages) = (Vec::new(), 0);
    loop {
        let page = client.get_steps(request.clone()).await.unwrap().into_inner();
        phases.extend(page.phases.into_iter().map(|phase| phase.phase));
        pages += 1;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let planned = plan::plan(&job(long), &datasets()).into_iter().filter(|phase| phase.steps > 0);
    assert_eq!((phases, pages), (planned.map(|phase| phase.id.to_string()).collect(), 2));
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_of_a_running_phase_are_there_before_it_ends() {
    let store = Store::in_memory();
    let coordinator = Coordinator::start(&store).await;
    coordinator.handle.submit(JOB.into(), submitted(&[])).await.unwrap();
    let client = ResultsClient::new(coordinator.channel().await);
    let (_worker, steps) = stepping::start(coordinator.address).await;
    let curve = async |wanted: u32| {
        let mut client = client.clone();
        let request = v1::GetStepsRequest { job_id: JOB.into(), max_points: 2000, ..Default::default() };
        loop {
            let found = client.get_steps(request.clone()).await.unwrap().into_inner();
            let phase = found.phases.into_iter().next();
            if let Some(phase) = phase.filter(|phase| phase.steps_done >= wanted) {
                return phase;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    steps.send((1, 4.0)).await.unwrap();
    let first = curve(1).await;
    assert_eq!((first.phase.as_str(), first.running, first.steps), ("r00.sft", true, stepping::STEPS as u32));
    steps.send((2, 2.0)).await.unwrap();
    let second = curve(2).await;
    assert_eq!((second.step.as_slice(), second.curves[0].mean.as_slice()), (&[1, 2][..], &[4.0, 2.0][..]));
    // Their lines take more than what is read at a time.
    for step in 3..=stepping::STEPS {
        steps.send((step, 1.0 / step as f64)).await.unwrap();
    }
    let all = curve(stepping::STEPS as u32).await;
    assert!(all.step.iter().copied().eq(1..=stepping::STEPS as u32), "{:?}", all.step);
    assert!((all.curves[0].mean[599] - 1.0 / 600.0).abs() < 1e-12, "{:?}", all.curves[0].mean);
    coordinator.stop().await;
}
